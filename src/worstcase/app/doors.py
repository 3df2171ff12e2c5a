"""Where the configuration lies, and how a command was called, so that it can be said how to repeat it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

PACKAGE = Path(__file__).parent.parent
CONF = str(next(folder for folder in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if folder.is_dir()))
"""The configuration folder of the installed package, or of the repository."""
DOOR = "WORSTCASE_DOOR"
"""Environment variable: set where the console script was called; the processes of a sweep inherit it."""

PLACES = ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir=")


def door(kind: str) -> str:
    """A command as this process was called: ``python -m src.train``, or ``worstcase train``."""
    return f"worstcase {kind}" if DOOR in os.environ else f"python -m src.{kind}"


def command(kind: str) -> str:
    """The command that repeats this job alone."""
    hydra = HydraConfig.get()
    return shlex.join([*door(kind).split(), *own_settings(hydra), *hydra.overrides.task])


def command_in_place(kind: str) -> str:
    """The command that does this job alone in the same folder."""
    hydra = HydraConfig.get()
    options = ["-m"] if hydra.mode == RunMode.MULTIRUN else []
    places = [said for said in hydra.overrides.hydra if said.startswith(PLACES)]
    return shlex.join([*door(kind).split(), *own_settings(hydra), *options, *hydra.overrides.task, *places])


def own_settings(hydra: HydraConf) -> list[str]:
    """The words of a command that say in which folder of the user's further settings are."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    said = [word for word in hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    return [word for path in folders for word in ("--config-dir", os.path.relpath(path))] + said
