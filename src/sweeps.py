"""Which jobs an experiment has, and what is finished, failed, begun or missing of them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import schema
from worstcase.results import RECORD, finished_runs

ERROR = "error.json"
LOG = "run.log"


class Job(NamedTuple):
    """One job of a sweep: its folder, and the command that runs it alone."""

    folder: Path
    command: str


def jobs(overrides: Sequence[str]) -> list[Job]:
    """The jobs that ``python -m src.train -m OVERRIDES`` has, those that come to the same once.

    Each override has one value; those of an experiment's own sweep may have several. Hydra must be initialised
    with this project's configuration.
    """
    cfg = compose("train", list(overrides), return_hydra_config=True)
    params = {key: str(value) for key, value in (cfg.hydra.sweeper.params or {}).items()}
    parser = OverridesParser.create()
    said = {parsed.key_or_group for parsed in parser.parse_overrides(list(overrides))}
    every = [f"{key}={value}" for key, value in params.items() if key not in said] + list(overrides)
    ((*combinations,),) = BasicSweeper.split_arguments(parser.parse_overrides(every), max_batch_size=None)
    found: dict[Path, Job] = {}
    for combination in combinations:
        job = compose("train", list(combination), return_hydra_config=True)
        schema.check(job)
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
        found.setdefault(folder, Job(folder, shlex.join(["python", "-m", "src.train", *combination])))
    return list(found.values())


def status(folders: Iterable[Path], wanted: Sequence[Job] = ()) -> Iterator[str]:
    """Lines: of each wanted job whether it is finished, failed or missing; else of all below some folders."""
    if wanted:
        missing = []
        for job in wanted:
            if (job.folder / RECORD).is_file():
                yield f"finished  {job.folder}"
            elif (job.folder / ERROR).is_file():
                yield from failure(job.folder)
            else:
                missing.append(job)
                yield f"missing   {job.folder}\n          {job.command}"
        finished = sum((job.folder / RECORD).is_file() for job in wanted)
        yield f"{finished} of {len(wanted)} jobs finished, {len(wanted) - finished - len(missing)} failed"
        return
    folders = list(folders)
    done = [folder for folder, _ in finished_runs(folders)]
    failed = failures(folders)
    begun = _begun(folders)
    for folder in sorted(done):
        yield f"finished  {folder}"
    for folder in failed:
        yield from failure(folder)
    for folder, command in begun:
        yield f"begun     {shown(folder)}\n          {command}"
    yield f"{len(done)} finished, {len(failed)} failed, {len(begun)} begun (at work, or killed)"


def failures(folders: Iterable[Path], since: float = 0.0) -> list[Path]:
    """The folders below some others of jobs that failed, last at or after a time (seconds since the epoch)."""
    return [folder for folder in _with(ERROR, folders) if (folder / ERROR).stat().st_mtime >= since]


def _begun(folders: Iterable[Path]) -> list[tuple[Path, str]]:
    """The folders below some others, with their commands, of jobs that have neither finished nor failed."""
    return [
        (folder, (folder / LOG).read_text().partition("src.cli: ")[2].partition(" in ")[0])
        for folder in _with(LOG, folders)
        if not any((folder / name).exists() for name in (RECORD, ERROR))
    ]


def _with(name: str, folders: Iterable[Path]) -> list[Path]:
    """The folders at or below some others that hold a file of a name."""
    return sorted({path.resolve().parent for folder in folders for path in folder.rglob(name)})


def shown(folder: Path) -> str:
    """A folder, relative to the current one if it lies below."""
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def failure(folder: Path) -> Iterator[str]:
    """What a failed job's folder says of its error, and its command."""
    content = json.loads((folder / ERROR).read_text())
    yield f"failed    {shown(folder)}: {content['error']}\n          {content['command']}"
