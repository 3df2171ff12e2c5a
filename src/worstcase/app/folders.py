"""Checks that a job may write into its folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from worstcase.app.state import JOB, Begun
from worstcase.evaluation.record import CHECKPOINT, EVALUATIONS, FILES, LAST, RECORD
from worstcase.evaluation.settings import without_place

LEFT = (  # files that a job writes, besides those in its subfolders
    *FILES,
    JOB,
    "run.log",
    "metrics.csv",
    "hparams.yaml",
    "tolerances*.safetensors",
    "broken_chip.safetensors",
    "reprogram.safetensors",
    "tolerance.json",
    "tolerance.png",
)
INSTANCES = "instances.csv"  # a user may have put it there
ANOTHER = "choose another hydra.run.dir"


def check_place(folder: Path) -> None:
    """Check that a folder exists or can be made.

    Raises:
        NotADirectoryError: a file is in its place.
        PermissionError: nothing can be made where it would be.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file, not a folder; {ANOTHER}")
    if nearest != folder and not os.access(nearest, os.W_OK):
        raise PermissionError(f"{nearest.absolute()} cannot be written to; {ANOTHER}")


def check_folder(folder: Path, settings: dict[str, Any], shown: str) -> None:
    """Check that a folder holds nothing that is not this job's, and no links.

    Args:
        folder: of the job; it exists.
        settings: of the job.
        shown: the folder, as it is shown.

    Raises:
        ValueError: it holds links, what is no plain file, files that no job left, another job's unfinished run, or
            evaluations of an earlier training.
    """
    within = (folder, folder.parent) if folder.parent.name == EVALUATIONS else ()
    for path in within:
        if path.is_symlink():
            raise ValueError(f"{path} is a link, so nothing is written there; {ANOTHER}")
    for path in _entries(folder):
        mode = path.lstat().st_mode
        is_folder = stat.S_ISDIR(mode) and not _is_left(path.name) and path.name != INSTANCES
        if not (stat.S_ISREG(mode) or is_folder):
            raise ValueError(f"{path} is no plain file, so nothing is written there; {ANOTHER}")
    begun = _begun(folder, shown)
    if begun is None:
        left = [path for path in folder.iterdir() if _is_left(path.name)]
        left += [folder / name for name in (CHECKPOINT, LAST) if (folder / name).exists()]
        if left:
            remedy = _remedy(shown) if (folder / LAST).is_file() else ANOTHER
            raise ValueError(f"{left[0]} is there, but no {JOB} that tells of which run it is; {remedy}")
    elif (folder / LAST).is_file() and without_place(begun.config) != without_place(settings):
        raise ValueError(f"{shown} holds an unfinished run of another configuration; {_remedy(shown)}")
    if "trainer" in settings and not (folder / LAST).is_file():  # so it trains anew
        for file in folder.glob(f"{EVALUATIONS}/*/{RECORD}"):
            raise ValueError(f"{file} is of an earlier training; {ANOTHER}, or move or delete {file.parents[1]}")


def _begun(folder: Path, shown: str) -> Begun | None:
    try:
        return Begun.load(folder)
    except ValueError as error:
        if (folder / LAST).is_file():
            reason = f"{error}; so its unfinished run cannot be gone on with"
            raise ValueError(f"{reason}: {_remedy(shown)}") from None
        raise ValueError(f"{error}; {ANOTHER}") from None


def _remedy(shown: str) -> str:
    return f"{ANOTHER}, or delete {Path(shown, LAST.parent)} to train anew, and any {Path(shown, EVALUATIONS)}"


def _is_left(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LEFT)


def _entries(folder: Path) -> Iterator[Path]:
    """The paths that a job may write to."""
    for pattern in ("*", f"{LAST.parent}/*", f"*/{INSTANCES}", f"*/*/{INSTANCES}"):
        yield from (path for path in folder.glob(pattern) if os.path.lexists(path))
