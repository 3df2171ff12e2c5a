"""List which jobs are finished, failed, begun or missing: python -m src.status."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from worstcase.app import naming, sweeps
from worstcase.app.doors import CONF
from worstcase.app.start import errors_in_one_line, start
from worstcase.app.state import failure, shown, unfinished
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import Record
from worstcase.text import visible


@hydra.main(version_base="1.3", config_path=CONF, config_name="status")
def _status(cfg: DictConfig) -> None:
    with errors_in_one_line():
        if cfg.sweep:
            lines = of_jobs(sweeps.jobs([f"experiment={cfg.sweep}", f"scale={cfg.scale}"]))
        else:
            lines = of_folders(naming.record_folders(cfg.folders))
        print(*lines, sep="\n")


def main() -> None:
    start(_status)


def of_folders(folders: Iterable[Path]) -> Iterator[str]:
    """Lines: of each job below some folders whether it is finished, failed or begun."""
    folders = list(folders)
    done = sorted(folder for folder, _ in finished_runs(folders))
    others = dict(unfinished(folders))
    failed = {folder: told for folder, told in others.items() if told.error}
    at_work = {folder: told for folder, told in others.items() if not told.error}
    for folder in done:
        yield f"finished  {visible(str(folder))}"
    for folder, told in failed.items():
        yield failure(folder, told)
    for folder, told in at_work.items():
        yield f"begun     {shown(folder)}\n          {visible(told.command)}"
    yield f"{len(done)} finished, {len(failed)} failed, {len(at_work)} begun (at work, or killed)"


def of_jobs(jobs: Sequence[sweeps.Job]) -> Iterator[str]:
    """Lines: of each job of a sweep whether it is finished, failed or missing, or its record broken."""
    finished = failed = broken = 0
    for job in jobs:
        told = dict(unfinished([job.folder])).get(job.folder.resolve())
        try:
            Record.load(job.folder)
            finished += 1
            yield f"finished  {job.folder}"
        except ValueError as error:
            broken += 1
            yield f"broken    {visible(str(error))}; delete it to run the job again\n          {job.command}"
        except FileNotFoundError:
            if told and told.error:
                failed += 1
                yield failure(job.folder, told)
            else:
                yield f"missing   {job.folder}\n          {job.command}"
    yield f"{finished} of {len(jobs)} jobs finished, {failed} failed" + (f", {broken} broken" if broken else "")
