"""The jobs of a sweep, and what they tell each other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote
from uuid import uuid4

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from worstcase.app import naming, ranges
from worstcase.app.doors import DOOR, door, own_settings
from worstcase.app.errors import in_one_line
from worstcase.app.state import failure, unfinished

FAILURES = "WORSTCASE_FAILURES"
"""Environment variable, URL-encoded: the file in which jobs of a sweep list the folders of those that failed."""
SWEEP = "WORSTCASE_SWEEP"
"""Environment variable, URL-encoded: the command of the sweep that is at work."""
MANY = 20
"""Jobs whose check takes a few seconds."""


class Job(NamedTuple):
    """One job of a sweep: its folder, and the command that runs it alone."""

    folder: Path
    command: str


def check_jobs(sweep: DictConfig) -> None:
    """Check the settings of all jobs before the first begins, since a job that cannot be named would stop Hydra.

    Jobs of a sweeper that searches are not known beforehand.

    Raises:
        ValueError: there is no job, one has bad settings, or all are told to take the folder of a single run.
    """
    from rich.console import Console
    from rich.progress import track

    for word in sweep.hydra.overrides.hydra:
        if word.startswith("hydra.run.dir="):
            raise ValueError(f"{word}: a sweep takes hydra.sweep.dir=FOLDER; for one job say hydra.mode=RUN")
    if not sweep.hydra.sweeper["_target_"].endswith(".BasicSweeper"):
        return
    found = _combinations(sweep.hydra.overrides.task, sweep.hydra.sweeper.params)
    if not found:
        raise ValueError("the sweep has no job; glob() knows only the files of groups: method=glob(*)")
    shared = set.intersection(*map(set, found))
    options: dict[str, Any] = {"console": Console(stderr=True), "transient": True, "disable": len(found) < MANY}
    for words in track(found, "checking the jobs", **options):
        try:
            ranges.check(naming.completed(compose(sweep.hydra.job.config_name, words, return_hydra_config=True)))
        except Exception as error:
            own = shlex.join(word for word in words if word not in shared)
            raise ValueError(f"{own}: no job was begun, since {in_one_line(error)}") from error


def announce(sweep: DictConfig) -> None:
    """Tell the jobs of a sweep, in whatever processes they run, what they are part of.

    Raises:
        ValueError: a sweeper would search the settings that train worst.
    """
    if sweep.hydra.job.name == "train" and "minimize" in str(sweep.hydra.sweeper.get("direction")):
        raise ValueError(
            "hydra.sweeper.direction=minimize: training returns an accuracy; say hydra.sweeper.direction=maximize"
        )
    folder = own_settings(sweep.hydra)
    words = sweep.hydra.overrides.hydra
    own = [word for word in words if not word.startswith("hydra.mode=") and word not in folder]
    told = {
        FAILURES: str(Path(sweep.hydra.sweep.dir, f".failed-{uuid4().hex}").absolute()),
        SWEEP: shlex.join([*door(sweep.hydra.job.name).split(), *folder, "-m", *sweep.hydra.overrides.task, *own]),
    }
    os.environ.update({name: quote(value) for name, value in told.items()})
    with read_write(sweep.hydra.overrides):  # for processes that do not inherit this one's environment
        for name in sorted({*told, DOOR} & os.environ.keys()):
            sweep.hydra.overrides.hydra.append(f"+hydra.job.env_set.{name}='{os.environ[name]}'")


def command() -> str | None:
    """The command of the sweep of which this job is part; None for a single run."""
    said = os.environ.get(SWEEP) if HydraConfig.get().mode == RunMode.MULTIRUN else None
    return unquote(said) if said else None


def list_failure(folder: Path) -> None:
    """Tell the process that started the sweep of a job that failed."""
    if FAILURES in os.environ:
        with Path(unquote(os.environ[FAILURES])).open("a") as listed:
            listed.write(f"{folder}\n")


def failures() -> Iterator[str]:
    """Lines: of each job of this sweep that failed, in any of its processes, its error and its command."""
    if FAILURES not in os.environ:
        return
    listed = Path(unquote(os.environ[FAILURES]))
    folders = [Path(line) for line in listed.read_text().splitlines()] if listed.is_file() else []
    listed.unlink(missing_ok=True)
    for folder, told in unfinished(sorted(set(folders))):
        if told.error:
            yield failure(folder, told)


def jobs(overrides: Sequence[str]) -> list[Job]:
    """The jobs that ``train -m OVERRIDES`` has, those that come to the same once.

    Each override has one value; those of an experiment's own sweep may have several. Hydra must be initialised
    with this project's configuration.
    """
    found: dict[Path, Job] = {}
    for combination in combinations(overrides):
        job = compose("train", combination, return_hydra_config=True)
        ranges.check(naming.completed(job))
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
        words = [*door("train").split(), *own_settings(job.hydra), *combination]
        found.setdefault(folder, Job(folder, shlex.join(words)))
    return list(found.values())


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, of which several may come to the same."""
    cfg = compose("train", list(overrides), return_hydra_config=True)
    return _combinations(overrides, cfg.hydra.sweeper.params)


def _combinations(overrides: Sequence[str], params: Mapping[str, Any] | None) -> list[list[str]]:
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    said = {parsed.key_or_group for parsed in parser.parse_overrides(list(overrides))}
    every = [f"{key}={value}" for key, value in (params or {}).items() if key not in said] + list(overrides)
    ((*found,),) = BasicSweeper.split_arguments(parser.parse_overrides(every), max_batch_size=None)
    return found
