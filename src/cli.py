"""What the commands share: jobs in their folders, skipping finished work, errors in one line."""

from __future__ import annotations

import difflib
import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO
from uuid import uuid4

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from src import identity, schema, sweeps
from src.begun import Begun
from src.folders import check_folder, check_place
from src.summary import print_summary
from worstcase.evaluation.record import RECORD, Record, git_commit, visible
from worstcase.evaluation.settings import without_place
from worstcase.lock import locked

CONF = str(Path(__file__).parent.parent / "conf")
LOG = "run.log"
LOCK = ".worstcase.lock"
FAILURES = "WORSTCASE_FAILURES"
"""Environment variable: the file in which the jobs of a sweep list the folders of those that failed."""
RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID", "SLURM_NTASKS", "JSM_NAMESPACE_RANK")
"""Environment variables by which Lightning tells its processes apart."""
log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job that failed and has said why; a sweep goes on with the others."""


def start(main: Callable[[], Any], words: Callable[[Sequence[str]], list[str]] = list) -> NoReturn:
    """Run a Hydra main; an error is one line and a non-zero exit code (HYDRA_FULL_ERROR=1 shows it whole).

    Args:
        main: takes the command line as `sys.argv` has it.
        words: from the words that were given to those that main is to take.
    """
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Waiting threads of GNU OpenMP sleep sooner: as fast alone, 6 times as fast beside two busy processes.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them with a hint
    # Lightning takes a note of SIGTERM and lets an attack go on for hours, but calls a handler that it finds.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show ends no job
    if error := _not_a_choice([word for word in sys.argv[1:] if "=[" in word]):  # Hydra would take both
        sys.exit(f"error: {error}")
    if "${" in str(Path.cwd()):  # Hydra would resolve it
        sys.exit(f"error: the folder {Path.cwd()} has ${{ in its name; rename it, or work in another")
    try:
        sys.argv[1:] = words(sys.argv[1:])
        main()
    except JobFailed:
        for folder, told in sweeps.begun(_failures_of_sweep()):
            if told.error:
                print(*sweeps.failure(folder, told), sep="\n", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (HydraException, OmegaConfBaseException, BrokenExecutor, OSError, ValueError) as error:
        if whole:
            raise
        sys.exit(f"error: {in_one_line(error)}")
    sys.exit(0)


class CheckBeforeRun(Callback):
    """Hydra callback: a single run's settings are checked before its folder is made."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        os.environ[FAILURES] = str(Path(config.hydra.sweep.dir, f".failed-{uuid4().hex}").absolute())

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            schema.check(identity.completed(config))
            check_place(Path(config.hydra.run.dir))
        except Exception as error:  # Hydra would go on
            sys.exit(f"error: {in_one_line(error)}")


def _failures_of_sweep() -> list[Path]:
    """The folders of the jobs of this sweep that failed, in any of its processes."""
    listed = Path(os.environ[FAILURES])
    folders = [Path(line) for line in listed.read_text().splitlines()] if listed.is_file() else []
    listed.unlink(missing_ok=True)
    return sorted(set(folders))


def run_job(kind: str, work: Callable[[dict[str, Any], Path], Record | None], cfg: DictConfig) -> None:
    """Do one job in its folder unless the folder holds its record already, and show the result.

    Args:
        kind: ``train`` or ``evaluate``.
        work: does the job of some settings in a folder, and returns the record that it has left there.
        cfg: the job's configuration.

    A job that fails ends with a non-zero exit code; why is on screen, in ``run.log`` and in ``job.json``.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    shown = sweeps.shown(folder)
    settings: dict[str, Any] = {}
    try:
        settings = identity.completed(cfg)
        schema.check(settings)
        _forget_foreign_ranks(settings)
        if _is_finished(kind, settings, folder, shown):
            return
        if is_first_process():
            check_folder(folder, settings, shown)
    except Exception as error:
        _fail(kind, folder, settings, error)

    if not is_first_process():
        logging.disable(logging.INFO)
        try:
            work(settings, folder)
        except Exception as error:
            sys.exit(f"error in process {os.environ['LOCAL_RANK']}: {in_one_line(error)}")
        return
    try:
        with locked(folder / LOCK) as free:
            if not free:
                log.info("another process is at work in %s, so left to it", shown)
                return
            if not _is_finished(kind, settings, folder, shown):  # by a process that held the lock just now
                check_folder(folder, settings, shown)
                _do(kind, work, settings, folder, shown)
            with suppress(OSError):  # whoever locks the folder now finds a finished job
                (folder / LOCK).unlink(missing_ok=True)
    except Exception as error:
        _fail(kind, folder, settings, error)


def _do(
    kind: str,
    work: Callable[[dict[str, Any], Path], Record | None],
    settings: dict[str, Any],
    folder: Path,
    shown: str,
) -> None:
    Begun(_same_place(kind), settings).save(folder)
    with _logging_into(folder / LOG) as job_log:
        try:
            log.info("%s in %s", _same_place(kind), shown)
            git_commit()  # remembered: what is committed while the job runs is not what runs
            record = work(settings, folder)
            assert record is not None  # of the first process
        except Exception:
            with suppress(OSError):
                job_log.write(traceback.format_exc())
            raise
    print_summary(record, shown)


def _is_finished(kind: str, settings: dict[str, Any], folder: Path, shown: str) -> bool:
    """The folder holds this job's record, which is shown.

    Raises:
        ConfigError: it holds another's.
    """
    if not (folder / RECORD).exists():
        return False
    record = Record.load(folder)
    if record.kind != kind or without_place(record.config) != without_place(settings):
        raise schema.ConfigError(
            f"{shown} holds the record of another configuration; choose another hydra.run.dir"
        )
    log.info("finished already, so not run again (delete %s to run it again)", shown)
    print_summary(record, shown)
    return True


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
        yield handler.stream
    finally:
        logging.getLogger().removeHandler(handler)
        with suppress(OSError):
            handler.close()


def _forget_foreign_ranks(settings: dict[str, Any]) -> None:
    """A rank in the environment of a job that is one process is a scheduler's, of something else."""
    trainer = settings.get("trainer", {"devices": 1})
    if trainer.get("devices") in (1, "1") and trainer.get("num_nodes") in (None, 1):
        foreign = RANKS
    elif os.environ.get("WORLD_SIZE", "1") == "1":  # nobody has started processes beside this one
        foreign = RANKS[:2]
    else:
        foreign = ()
    for name in foreign:
        os.environ.pop(name, None)


def is_first_process() -> bool:
    """False in the processes that Lightning starts beside the first, which alone writes and shows."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _fail(kind: str, folder: Path, settings: dict[str, Any], error: Exception) -> NoReturn:
    """End a single run, or this job of a sweep: its error is said, and left in its folder."""
    message = in_one_line(error)
    if isinstance(error, OSError) and error.errno and not error.filename:
        message += f" (in {sweeps.shown(folder)})"
    elif folder.exists() and shutil.disk_usage(folder).free < 2**20:
        message = f"the disk of {sweeps.shown(folder)} is full ({message})"
    log.error("error: %s", message)
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    with suppress(OSError):
        if not (folder / RECORD).exists() and not _is_anothers(folder, settings):
            Begun(_same_place(kind), settings, message).save(folder)
        if multirun and FAILURES in os.environ:
            with Path(os.environ[FAILURES]).open("a") as listed:
                listed.write(f"{folder}\n")
    if multirun:
        raise JobFailed(message) from None
    sys.exit(1)


def _is_anothers(folder: Path, settings: dict[str, Any]) -> bool:
    """What the folder holds is not known to be this job's."""
    try:
        check_folder(folder, settings, str(folder))
    except (OSError, ValueError):
        return True
    return False


def command(kind: str) -> str:
    """The command that repeats this job alone."""
    return shlex.join(["python", "-m", f"src.{kind}", *HydraConfig.get().overrides.task])


def _same_place(kind: str) -> str:
    """The command that does this job alone in the same folder."""
    hydra = HydraConfig.get()
    options = ["-m"] if hydra.mode == RunMode.MULTIRUN else []
    places = [said for said in hydra.overrides.hydra if said.startswith(("hydra.run.dir=", "hydra.sweep.dir="))]
    return shlex.join(["python", "-m", f"src.{kind}", *options, *hydra.overrides.task, *places])


def in_one_line(error: BaseException) -> str:
    """What was wrong, without the indented details that Hydra and OmegaConf add below."""
    if isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        known = [str(key) for key in error.parent_node if key != "hydra"]
        similar = difflib.get_close_matches(str(error.key), known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
        if str(error.full_key).startswith("trainer.") and not similar:
            hint += f"; another of Lightning's is added by +{error.full_key}=VALUE"
        return f"there is no setting {error.full_key}; {hint}"
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]} is needed: {missing[1]}=VALUE"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        hint = "; presets are chosen with th_g=NAME" if error.full_key == "thg" else ""
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}{hint}"
    text = str(error).split("Config search path:")[0]
    if re.match(r"Caught \w+ in DataLoader worker", text):  # its traceback follows, the error comes last
        text = text.rstrip().splitlines()[-1].partition(": ")[2]
    if text.startswith("Config group override must be"):
        text = _not_a_choice(sys.argv[1:]) or text
    return visible(" ".join(text.split())) or type(error).__name__


def _not_a_choice(arguments: Sequence[str]) -> str:
    """Of the first argument that gives a group something else than one of its files, what it may be."""
    for argument in arguments:
        place, _, value = argument.partition("=")
        group = Path(CONF, place.partition("@")[0])
        if group.is_dir() and not all((group / f"{name}.yaml").exists() for name in value.split(",")):
            number = "; a number is thg=NUMBER" if place == "th_g" else ""
            return f"{argument}: must be one of {', '.join(sorted(p.stem for p in group.glob('*.yaml')))}{number}"
    return ""
