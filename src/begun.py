"""What a job leaves of itself before its record: job.json, by which it is continued, repeated or explained."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worstcase.evaluation.record import write_json

JOB = "job.json"


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
        """Of a folder; None where no job has begun.

        Raises:
            ValueError: the file cannot be read.
        """
        path = folder / JOB
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
            begun = cls(**content)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        types = {"command": str, "config": dict, "error": str | None}
        if wrong := [name for name, kind in types.items() if not isinstance(getattr(begun, name), kind)]:
            raise ValueError(f"{path} cannot be read: its {wrong[0]} is of another type")
        return begun
