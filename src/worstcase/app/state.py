"""The state of a job: job.json is there once it has begun, and has its error if it failed; a record ends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worstcase.evaluation.finished_runs import files_named
from worstcase.evaluation.record import RECORD, write_json
from worstcase.text import visible

JOB = "job.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A job that has begun. With a record beside it, it has finished; with an error, it failed."""

    command: str
    """Repeats the job in its folder."""
    config: dict[str, Any]
    error: str | None = None

    def save(self, folder: Path) -> None:
        write_json(folder / JOB, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Begun | None:
        """Read the state of a folder's job; None if no job has begun.

        Raises:
            ValueError: the file cannot be read.
        """
        path = folder / JOB
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            begun = cls(**content)
        except TypeError:
            raise ValueError(f"{path} cannot be read: it is not the file of a job") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        types = {"command": str, "config": dict, "error": str | None}
        if wrong := [name for name, kind in types.items() if not isinstance(getattr(begun, name), kind)]:
            raise ValueError(f"{path} cannot be read: its {wrong[0]} is of another type")
        return begun


def unfinished(folders: Iterable[Path]) -> Iterator[tuple[Path, Begun]]:
    """The jobs at or below some folders that have begun and left no record; unreadable files are warned of."""
    for path in sorted(files_named(JOB, folders)):
        if (path.parent / RECORD).exists():
            continue
        try:
            if told := Begun.load(path.parent):
                yield path.parent.resolve(), told
        except ValueError as error:
            log.warning("passed over: %s", visible(str(error)))


def failure(folder: Path, told: Begun) -> str:
    """A failed job's error and its command, in two lines."""
    return f"failed    {shown(folder)}: {visible(told.error or '')}\n          {visible(told.command)}"


def shown(folder: Path) -> str:
    """A folder, relative to the current one if it lies below."""
    return visible(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))
