"""What the jobs of a sweep are, and what they tell each other."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from worstcase.app import naming, schema
from worstcase.app.doors import door
from worstcase.app.state import failure, unfinished

FAILURES = "WORSTCASE_FAILURES"
"""Environment variable: the file in which the jobs of a sweep list the folders of those that failed."""
SWEEP = "WORSTCASE_SWEEP"
"""Environment variable: the command of the sweep that is at work."""


class Job(NamedTuple):
    """One job of a sweep: its folder, and the command that runs it alone."""

    folder: Path
    command: str


def announce(sweep: DictConfig) -> None:
    """Tell the jobs of a sweep, in this process and in those it will start, what they are part of."""
    os.environ[FAILURES] = str(Path(sweep.hydra.sweep.dir, f".failed-{uuid4().hex}").absolute())
    os.environ[SWEEP] = shlex.join([*door(sweep.hydra.job.name).split(), "-m", *sweep.hydra.overrides.task])


def command() -> str | None:
    """The command of the sweep of which this job is part; None for a single run."""
    return os.environ.get(SWEEP) if HydraConfig.get().mode == RunMode.MULTIRUN else None


def list_failure(folder: Path) -> None:
    """Tell the process that started the sweep of a job that failed."""
    if FAILURES in os.environ:
        with Path(os.environ[FAILURES]).open("a") as listed:
            listed.write(f"{folder}\n")


def failures() -> Iterator[str]:
    """Lines: of each job of this sweep that failed, in any of its processes, its error and its command."""
    listed = Path(os.environ[FAILURES])
    folders = [Path(line) for line in listed.read_text().splitlines()] if listed.is_file() else []
    listed.unlink(missing_ok=True)
    for folder, told in unfinished(sorted(set(folders))):
        if told.error:
            yield from failure(folder, told)


def jobs(overrides: Sequence[str]) -> list[Job]:
    """The jobs that ``train -m OVERRIDES`` has, those that come to the same once.

    Each override has one value; those of an experiment's own sweep may have several. Hydra must be initialised
    with this project's configuration.
    """
    found: dict[Path, Job] = {}
    for combination in combinations(overrides):
        job = compose("train", combination, return_hydra_config=True)
        schema.check(naming.completed(job))
        folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
        found.setdefault(folder, Job(folder, shlex.join([*door("train").split(), *combination])))
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
