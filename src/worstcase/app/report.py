"""Your runs, and every figure and table that the records allow: python -m src.report."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from worstcase.app import naming, tracking
from worstcase.app.doors import CONF, door
from worstcase.app.start import errors_in_one_line, start
from worstcase.evaluation.finished_runs import files_named
from worstcase.evaluation.record import RECORD


@hydra.main(version_base="1.3", config_path=CONF, config_name="report")
def _report(cfg: DictConfig) -> None:
    with errors_in_one_line():
        report(naming.record_folders(cfg.folders), Path(cfg.out), upload=cfg.wandb)


def report(folders: list[Path], out: Path, *, upload: bool) -> None:
    """Write the page and its files into `out`, say what they show, and upload them if asked."""
    from worstcase.paper import SECTIONS
    from worstcase.report.write import PAGE, write_report

    if next(files_named(RECORD, folders), None) is None:
        where = ", ".join(map(str, folders))
        raise FileNotFoundError(f"no finished runs below {where}; make one with: {door('train')}")
    sections = write_report(folders, out, SECTIONS)
    for section in sections:
        print(f"  {section.name:<12} {section.title}, {section.seeds}")
    print(f"report: {out / PAGE}")
    if upload:
        tracking.upload_report(sections, out)


def main() -> None:
    start(_report)
