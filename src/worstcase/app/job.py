"""One job in its folder: skipped if it has finished, locked while it is at work, and told of if it fails."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from worstcase.app import naming, ranges, state, sweeps
from worstcase.app.doors import command_in_place
from worstcase.app.errors import JobFailed, in_one_line
from worstcase.app.folders import ANOTHER, check_folder
from worstcase.app.state import Begun
from worstcase.app.summary import print_summary
from worstcase.evaluation.record import RECORD, Record, git_commit
from worstcase.evaluation.settings import without_place
from worstcase.lock import locked

Work = Callable[[dict[str, Any], Path], Record | None]
"""Does the job of some settings in a folder, and returns the record that it has left there."""
LOG = "run.log"
LOCK = ".worstcase.lock"
RANK_VARIABLES = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK")
"""Environment variables by which Lightning tells its processes apart."""
log = logging.getLogger(__name__)


def run_job(kind: str, work: Work, cfg: DictConfig) -> float | None:
    """Do one job in its folder unless the folder holds its record already, and show the result.

    A job that fails ends with a non-zero exit code; why is on screen, in ``run.log`` and in ``job.json``.

    Args:
        kind: ``train``, or ``evaluate`` or ``tolerance``, whose records are those of evaluations.
        work: does the job.
        cfg: its configuration.

    Returns:
        What a sweeper may select settings by. Of a training: its ``method.monitor`` on the validation split, at
        the best epoch, since selection never sees the test set. Of an evaluation: the attacked accuracy. None in
        processes beside the first, and where another process is at work on the same job.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    shown = state.shown(folder)
    settings: dict[str, Any] = {}
    try:
        settings = naming.completed(cfg)
        ranges.check(settings)
        _forget_foreign_ranks(settings)
        if not is_first_process():
            _beside_the_first(work, settings, folder)
            return None
        if record := _finished(kind, settings, folder, shown):
            return _value(record)
        check_folder(folder, settings, shown)
        with locked(folder / LOCK) as free:
            if not free:
                begun = Begun.load(folder)
                if begun and without_place(begun.config) != without_place(settings):
                    raise _AtWorkError(f"another configuration is at work in {shown}; {ANOTHER}")
                log.info("another process is at work in %s, so left to it", shown)
                return None
            record = _finished(kind, settings, folder, shown)  # by a process that held the lock just now
            if record is None:
                check_folder(folder, settings, shown)
                record = _do(kind, work, settings, folder, shown)
            with suppress(OSError):  # whoever locks the folder now finds a finished job
                (folder / LOCK).unlink(missing_ok=True)
        return _value(record)
    except Exception as error:
        _fail(kind, folder, settings, error)


def _value(record: Record) -> float | None:
    return record.validation if record.kind == "train" else record.attacked_accuracy


def is_first_process() -> bool:
    """False in the processes that Lightning starts beside the first, which alone writes and shows."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _beside_the_first(work: Work, settings: dict[str, Any], folder: Path) -> None:
    logging.disable(logging.INFO)
    try:
        work(settings, folder)
    except Exception as error:
        sys.exit(f"error in process {os.environ['LOCAL_RANK']}: {in_one_line(error, settings)}")


def _finished(kind: str, settings: dict[str, Any], folder: Path, shown: str) -> Record | None:
    """The record of this job if the folder holds it, which is shown; None where there is none.

    Raises:
        ValueError: it holds another's.
    """
    if not (folder / RECORD).exists():
        return None
    record = Record.load(folder)
    if (record.kind == "train") != (kind == "train") or without_place(record.config) != without_place(settings):
        raise ValueError(f"{shown} holds the record of another configuration; {ANOTHER}")
    log.info("finished already, so not run again (delete %s to run it again)", shown)
    print_summary(record, shown)
    return record


def _do(kind: str, work: Work, settings: dict[str, Any], folder: Path, shown: str) -> Record:
    Begun(command_in_place(kind), settings).save(folder)
    with _logging_into(folder / LOG) as job_log:
        try:
            log.info("%s in %s", command_in_place(kind), shown)
            _import_the_library()
            git_commit()  # remembered: what is committed while the job runs is not what runs
            record = work(settings, folder)
            assert record is not None  # of the first process
        except Exception:
            with suppress(OSError):
                job_log.write(traceback.format_exc())
            raise
    print_summary(record, shown)
    return record


def _import_the_library() -> None:
    """Import what every job needs, without looking for garbage meanwhile, which takes a fifth of the time."""
    gc.disable()
    try:
        import worstcase.runs  # noqa: F401
    finally:
        gc.enable()
    gc.freeze()  # what is imported stays


class _AtWorkError(ValueError):
    """Another job is at work in this job's folder, and its files are not ours."""


class _JobLog(logging.FileHandler):
    """A log whose own failure, such as a full disk, is the job's failure."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the standard library's name)
        raise


@contextmanager
def _logging_into(file: Path) -> Iterator[TextIO]:
    """Within a block, what is logged goes to a file too; yields its stream."""
    handler = _JobLog(file, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        assert handler.stream is not None  # it is opened at once
        yield handler.stream
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _forget_foreign_ranks(settings: dict[str, Any]) -> None:
    """A rank in the environment of a job that is one process is a scheduler's, of something else."""
    trainer = settings.get("trainer", {"devices": 1})
    foreign: tuple[str, ...] = ()
    if trainer.get("devices") in (1, "1") and trainer.get("num_nodes") in (None, 1):
        foreign = RANK_VARIABLES
    elif os.environ.get("WORLD_SIZE", "1") == "1":  # nobody has started processes beside this one
        foreign = RANK_VARIABLES[:2]
    for name in foreign:
        os.environ.pop(name, None)


def _fail(kind: str, folder: Path, settings: dict[str, Any], error: Exception) -> NoReturn:
    """End a single run, or this job of a sweep: its error is said, and left in its folder."""
    message = in_one_line(error, settings)
    if isinstance(error, OSError) and error.errno and not error.filename:
        message += f" (in {state.shown(folder)})"
    elif folder.exists() and shutil.disk_usage(folder).free < 2**20:
        message = f"the disk of {state.shown(folder)} is full ({message})"
    log.error("error: %s", message)
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    with suppress(OSError):
        ours = not isinstance(error, _AtWorkError) and not _is_anothers(folder, settings)
        if ours and not (folder / RECORD).exists():
            Begun(command_in_place(kind), settings, message).save(folder)
        if multirun:
            sweeps.list_failure(folder)
    if multirun:
        raise JobFailed(message) from None
    sys.exit(1)


def _is_anothers(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder may hold another job's files."""
    try:
        check_folder(folder, settings, str(folder))
    except (OSError, ValueError):
        return True
    return False
