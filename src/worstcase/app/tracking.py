"""Curves and the report for CSV files and Weights & Biases. No command reads them again."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

    from worstcase.report.section import Section


def loggers(chosen: Mapping[str, Any], folder: Path) -> list[Logger]:
    """The loggers of the configuration's group, writing into the run's folder.

    In Weights & Biases a run is named as its folder; those of one experiment, or of one sweep, are a group, and
    their job type is the method.
    """
    from hydra.utils import instantiate

    found = []
    for name, logger in chosen.items():
        if logger is None:
            continue
        shown = {}
        if name == "wandb":
            _offline_unless_logged_in()
            hydra = HydraConfig.get()
            sweep = hydra.sweep.dir if hydra.mode == RunMode.MULTIRUN else None
            choices = hydra.runtime.choices
            shown = {
                "name": folder.name,
                "group": choices.get("experiment") or sweep,
                "job_type": choices["method"],
            }
        unsaid = {key: value for key, value in shown.items() if key not in logger}
        found.append(instantiate(logger, save_dir=folder, **unsaid))
    return found


def upload_report(sections: Iterable[Section], out: Path) -> None:
    """A run of job type 'report' with every figure and table that lies in a folder."""
    import wandb

    from worstcase.report.rows import columns

    _offline_unless_logged_in()
    with wandb.init(project="worstcase", job_type="report", dir=str(out)) as run:
        for section in sections:
            header, body = columns(section.rows)
            run.log(
                {
                    f"{section.name}/table": wandb.Table([*header], body),
                    **{
                        f"{section.name}/{name}": wandb.Image(str(out / f"{name}.png"), caption=section.title)
                        for name in section.figures
                    },
                }
            )
            run.save(str(out / f"{section.name}.csv"), base_path=str(out), policy="now")


def _offline_unless_logged_in() -> None:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(host)):
        os.environ.setdefault("WANDB_MODE", "offline")


def _in_netrc(host: str) -> bool:
    """Whether a password for a host is in the file in which wandb leaves its key."""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
