"""The file in which Monte Carlo keeps its instances, so that a run goes on where it was killed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "instances.csv"
COLUMNS = "instance,correct,feasible,seconds"
NEWER = ("data",)  # of an identity: files of earlier versions do not say it
LINE = re.compile(r"(\d+),(\d+),([01]),(\d+\.\d+)")


class Instance(NamedTuple):
    """One sampled chip."""

    correct: int
    """Right answers over the reference set."""
    feasible: bool
    """Whether it is inside the box of write-verify."""
    seconds: float
    """Its time; chips that are computed together share it equally."""


def read_lines(file: Path) -> tuple[str, dict[int, str]]:
    """The first line, which says what a file holds instances of, and each one's line; nothing of no file."""
    if not file.is_file():
        return "", {}
    header, *lines = file.read_text().splitlines() or [""]
    return header, {int(match[1]): line for line in lines if (match := LINE.fullmatch(line))}


class InstanceFile:
    """Lines of instances below one that says what they are instances of.

    A file may have been put together from several: its lines may be in any order and come more than once.

    Args:
        folder: where the file is, or will be.
        identity: everything that decides an instance's right answers, in plain types.

    Raises:
        ValueError: the file holds instances of something else, or is no such file.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self.instances: dict[int, Instance] = {}
        header = f"# {json.dumps(identity)}\n{COLUMNS}\n"
        folder.mkdir(parents=True, exist_ok=True)
        found = self.path.read_bytes() if self.path.exists() else b""
        length = found.rfind(b"\n") + 1  # a kill may have torn the last line
        content, whole = _text(found), _text(found[:length])
        if header.startswith(whole):
            if not header.startswith(content):
                raise ValueError(f"{self.path} is no file of Monte Carlo's instances")
            self.path.write_text(header, newline="\n")
            return
        for number, line in enumerate(whole.splitlines(), 1):
            if number == 1 or line.startswith("#"):
                self._check(line, identity)
            elif match := LINE.fullmatch(line):
                index, correct, feasible = map(int, match.groups()[:3])
                self.instances.setdefault(index, Instance(correct, bool(feasible), float(match[4])))
            elif line != COLUMNS:
                raise ValueError(f"{self.path}, line {number} is torn: {line!r}; remove it")
        os.truncate(self.path, length)

    def append(self, instances: Mapping[int, Instance]) -> None:
        """Add instances by their index."""
        self.instances |= instances
        with self.path.open("a", newline="\n") as file:
            file.writelines(
                f"{i},{one.correct},{one.feasible:d},{one.seconds:.6f}\n" for i, one in instances.items()
            )

    def _check(self, line: str, identity: Mapping[str, Any]) -> None:
        try:
            found = json.loads(line.removeprefix("# "))
            differences = [
                f"{key} is {found.get(key)!r}, not {value!r}"
                for key, value in identity.items()
                if found.get(key, value if key in NEWER else None) != value
            ]
        except (ValueError, AttributeError):
            raise ValueError(f"{self.path} is no file of Monte Carlo's instances") from None
        if differences:
            raise ValueError(f"{self.path} holds other instances: {'; '.join(differences)}")


def _text(content: bytes) -> str:
    """Lines that Windows ended too."""
    return content.decode(errors="replace").replace("\r\n", "\n")
