"""Finds the finished runs below some folders, and the training that each is of.

Needs no PyTorch, so that they are listed fast.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from worstcase.evaluation.record import RECORD, Record
from worstcase.text import visible

log = logging.getLogger(__name__)


def finished_runs(roots: Iterable[Path]) -> Iterator[tuple[Path, Record]]:
    """The finished runs below some folders, newest first. Invalid records are skipped with a warning."""
    for path in sorted(files_named(RECORD, roots), key=_time, reverse=True):
        try:
            yield path.parent, Record.load(path.parent)
        except FileNotFoundError:  # it vanished, or is not a plain file
            if path.exists():
                log.warning("skipped: %s is not a file", path)
        except (OSError, ValueError) as error:
            log.warning("skipped: %s", visible(str(error)))


def runs_and_trainings(folders: Iterable[Path]) -> list[tuple[Path, Record, Record | None]]:
    """The finished runs below some folders, oldest first: folder, record, and the record of its training.

    The last is None if the network's weights were given, if its training is gone, or if the record where the
    training was is of another network.
    """
    found = {folder.resolve(): (folder, record) for folder, record in finished_runs(folders)}

    @cache
    def outside(folder: Path) -> Record | None:
        return Record.load(folder) if (folder / RECORD).is_file() else None

    def training(folder: Path, record: Record) -> Record | None:
        if record.source_run is None:
            return record if record.kind == "train" else None
        try:
            source = (folder / record.source_run).resolve()
            trained = found[source][1] if source in found else outside(source)
            if trained and (differs := another_network(record, trained)):
                raise ValueError(f"{source} has another {differs}")
            return trained
        except (OSError, ValueError, RuntimeError) as error:  # not a path, or no record there
            log.warning("the training of %s is unknown: %s", visible(str(folder)), visible(str(error)))
            return None

    return [(folder, record, training(folder, record)) for folder, record in reversed(found.values())]


def another_network(record: Record, trained: Record) -> str:
    """In what an evaluation differs from the training that its network would be of; empty if in nothing known."""
    if record.method != trained.method:
        return f"method, {trained.method}"
    if record.model != trained.model:
        return f"network, {trained.model}"
    digests = record.config.get("weights"), trained.weights_digest
    if not record.config.get("checkpoint") and None not in digests and len(set(digests)) > 1:
        return "file of weights"
    return ""


def files_named(name: str, roots: Iterable[Path]) -> Iterator[Path]:
    """Every file of some name in or below some folders, once. Links to folders are followed; loops are not.

    Folders that cannot be read are warned of.
    """

    def warn(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile, or never there
            _warn_once(f"skipped: {visible(str(error.filename))} cannot be read: {error.strerror}")

    seen: set[str] = set()
    for root in roots:
        for folder, below, files in os.walk(root, onerror=warn, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            if name in files or name in below:
                yield Path(folder, name)


@cache
def _warn_once(line: str) -> None:
    log.warning("%s", line)


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
