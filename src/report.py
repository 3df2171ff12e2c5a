"""Every figure and table that the records allow, and what is finished, failed or missing: python -m src.report."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from src import cli, identity, sweeps, tracking


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="report")
def main(cfg: DictConfig) -> None:
    try:
        report(cfg)
    except (HydraException, OSError, ValueError) as error:
        sys.exit(f"error: {cli.in_one_line(error)}")


def report(cfg: DictConfig) -> None:
    """Write the report, or list the jobs; what there was enough for is said on standard output."""
    folders = [Path(folder) for folder in cfg.folders]
    for folder in folders:
        if not folder.is_dir() and folder not in identity.RUN_ROOTS:
            raise NotADirectoryError(f"folders: there is no folder {folder}")
    if cfg.status:
        named = cfg.status is not True
        wanted = sweeps.jobs([f"experiment={cfg.status}", f"scale={cfg.scale}"]) if named else []
        print(*sweeps.status(folders, wanted), sep="\n")
        return
    from worstcase.paper import SECTIONS
    from worstcase.report.write import PAGE, write_report

    sections = write_report(folders, Path(cfg.out), SECTIONS)
    for section in sections:
        print(f"  {section.name:<12} {section.title}, {section.seeds}")
    print(f"report: {Path(cfg.out, PAGE)}")
    if cfg.wandb:
        tracking.upload_report(sections, Path(cfg.out))


if __name__ == "__main__":
    cli.start(main)
