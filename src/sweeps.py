"""Which jobs an experiment has, and what is finished, failed, begun or missing of them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from src import identity, schema
from src.begun import JOB, Begun
from worstcase.evaluation.record import RECORD, files_named, finished_runs, visible

log = logging.getLogger(__name__)


class Job(NamedTuple):
    """One job of a sweep: its folder, and the command that runs it alone."""

    folder: Path
    command: str


def jobs(overrides: Sequence[str]) -> list[Job]:
    """The jobs that ``python -m src.train -m OVERRIDES`` has, those that come to the same once.

    Each override has one value; those of an experiment's own sweep may have several. Hydra must be initialised
    with this project's configuration.
    """
    found: dict[Path, Job] = {}
    for combination in combinations(overrides):
        job = compose("train", combination, return_hydra_config=True)
        schema.check(identity.completed(job))
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
        found.setdefault(folder, Job(folder, shlex.join(["python", "-m", "src.train", *combination])))
    return list(found.values())


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, of which several may come to the same."""
    cfg = compose("train", list(overrides), return_hydra_config=True)
    params = {key: str(value) for key, value in (cfg.hydra.sweeper.params or {}).items()}
    parser = OverridesParser.create()
    said = {parsed.key_or_group for parsed in parser.parse_overrides(list(overrides))}
    every = [f"{key}={value}" for key, value in params.items() if key not in said] + list(overrides)
    ((*found,),) = BasicSweeper.split_arguments(parser.parse_overrides(every), max_batch_size=None)
    return found


def status(folders: Iterable[Path], wanted: Sequence[Job] = ()) -> Iterator[str]:
    """Lines: of each wanted job whether it is finished, failed or missing; else of all below some folders."""
    if wanted:
        finished = failed = 0
        for job in wanted:
            told = dict(begun([job.folder])).get(job.folder.resolve())
            if (job.folder / RECORD).is_file():
                finished += 1
                yield f"finished  {job.folder}"
            elif told and told.error:
                failed += 1
                yield from failure(job.folder, told)
            else:
                yield f"missing   {job.folder}\n          {job.command}"
        yield f"{finished} of {len(wanted)} jobs finished, {failed} failed"
        return
    folders = list(folders)
    done = sorted(folder for folder, _ in finished_runs(folders))
    unfinished = dict(begun(folders))
    failed = [folder for folder, told in unfinished.items() if told.error]
    for folder in done:
        yield f"finished  {visible(str(folder))}"
    for folder in failed:
        yield from failure(folder, unfinished[folder])
    at_work = [folder for folder in unfinished if folder not in failed]
    for folder in at_work:
        yield f"begun     {shown(folder)}\n          {visible(unfinished[folder].command)}"
    yield f"{len(done)} finished, {len(failed)} failed, {len(at_work)} begun (at work, or killed)"


def begun(folders: Iterable[Path]) -> Iterator[tuple[Path, Begun]]:
    """The jobs at or below some folders that have no record; of a file that cannot be read it is warned."""
    for path in sorted(files_named(JOB, folders)):
        if (path.parent / RECORD).exists():
            continue
        try:
            if told := Begun.load(path.parent):
                yield path.parent.resolve(), told
        except ValueError as error:
            log.warning("passed over: %s", visible(str(error)))


def shown(folder: Path) -> str:
    """A folder, relative to the current one if it lies below."""
    return visible(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


def failure(folder: Path, told: Begun) -> Iterator[str]:
    """What a failed job says of its error, and its command."""
    yield f"failed    {shown(folder)}: {visible(told.error or '')}\n          {visible(told.command)}"
