"""Your runs, and every figure and table that the records allow: python -m src.report."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from worstcase.app import naming, tracking
from worstcase.app.doors import CONF
from worstcase.app.start import start


@hydra.main(version_base="1.3", config_path=CONF, config_name="report")
def _report(cfg: DictConfig) -> None:
    folders = naming.record_folders(cfg.folders)
    from worstcase.report.write import PAGE, write_report

    sections = write_report(folders, Path(cfg.out))
    for section in sections:
        print(f"  {section.name:<12} {section.title}, {section.seeds}")
    print(f"report: {Path(cfg.out, PAGE)}")
    if cfg.wandb:
        tracking.upload_report(sections, Path(cfg.out))


def main() -> None:
    start(_report)
