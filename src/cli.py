"""What the commands share: jobs in their folders, skipping finished work, errors in one line."""

from __future__ import annotations

import difflib
import fcntl
import logging
import os
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from src import identity, schema, sweeps
from src.summary import print_summary
from worstcase.results import RECORD, Record, git_commit, write_json
from worstcase.settings import without_place

CONF = str(Path(__file__).parent.parent / "conf")
log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job that failed and has said why; a sweep goes on with the others."""


def start(main: Callable[[], Any]) -> NoReturn:
    """Run a Hydra main; an error is one line and a non-zero exit code (HYDRA_FULL_ERROR=1 shows it whole)."""
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Waiting threads of GNU OpenMP sleep sooner: as fast alone, 6 times as fast beside two busy processes.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them with a hint
    # Lightning takes a note of SIGTERM and lets an attack go on for hours, but calls a handler that it finds.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    started = time.time()
    if error := _not_a_choice([word for word in sys.argv[1:] if "=[" in word]):  # Hydra would take both
        sys.exit(f"error: {error}")
    try:
        main()
    except JobFailed:
        for folder in sweeps.failures({*CheckBeforeRun.sweep, *identity.RUN_ROOTS}, since=started - 1):
            print(*sweeps.failure(folder), sep="\n", file=sys.stderr)
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

    sweep: ClassVar[list[Path]] = []
    """The folder of the sweep that runs."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.sweep.append(Path(config.hydra.sweep.dir))

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            schema.check(identity.completed(config))
            _check_folder(Path(config.hydra.run.dir))
        except (OmegaConfBaseException, OSError, ValueError) as error:
            sys.exit(f"error: {in_one_line(error)}")


def _check_folder(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file, not a folder; choose another hydra.run.dir")


def run_job(kind: str, work: Callable[[DictConfig, Path], Record], cfg: DictConfig) -> None:
    """Do one job in its folder unless the folder holds its record already, and show the result.

    Args:
        kind: ``train`` or ``evaluate``.
        work: does the job in a folder and returns its record, which is then written.
        cfg: the job's configuration.

    A job that fails ends with a non-zero exit code; why is on screen, in ``run.log`` and in ``error.json``.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    shown = sweeps.shown(folder)
    try:
        cfg = identity.completed(cfg)
        schema.check(cfg)
        OmegaConf.resolve(cfg)
        if _is_finished(kind, cfg, folder, shown):
            return
    except Exception as error:
        _fail(kind, folder, in_one_line(error))

    if not is_first_process():
        logging.disable(logging.INFO)
        work(cfg, folder)
        return
    handler = logging.FileHandler(folder / sweeps.LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        if not _lock(handler):
            log.info("another process is at work in %s, so left to it", shown)
            return
        if _is_finished(kind, cfg, folder, shown):  # by a process that held the lock just now
            return
        (folder / sweeps.ERROR).unlink(missing_ok=True)
        logging.getLogger().addHandler(handler)
        log.info("%s in %s", _same_place(kind), shown)
        git_commit()  # remembered: what is committed while the job runs is not what runs
        record = work(cfg, folder)
        record.save(folder)
        print_summary(record, shown)
    except Exception as error:
        handler.stream.write(traceback.format_exc())
        _fail(kind, folder, in_one_line(error))
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _is_finished(kind: str, cfg: DictConfig, folder: Path, shown: str) -> bool:
    """The folder holds this job's record, which is shown.

    Raises:
        ConfigError: it holds another's.
    """
    if not (folder / RECORD).exists():
        return False
    record = Record.load(folder)
    wanted = without_place(OmegaConf.to_container(cfg))
    if record.kind != kind or without_place(record.config) != wanted:
        raise schema.ConfigError(
            f"{shown} holds the record of another configuration; choose another hydra.run.dir"
        )
    log.info("finished already, so not run again (delete %s to run it again)", shown)
    print_summary(record, shown)
    return True


def _lock(log_file: logging.FileHandler) -> bool:
    """Hold the job's log file for this process alone until it is closed, however the process ends; False: held."""
    try:
        fcntl.flock(log_file.stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_first_process() -> bool:
    """False in the processes that Lightning starts beside the first, which alone writes and shows."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _fail(kind: str, folder: Path, message: str) -> NoReturn:
    """End a single run, or this job of a sweep: its error is said, and left in its folder."""
    log.error("error: %s", message)
    if not (folder / RECORD).exists():
        write_json(folder / sweeps.ERROR, {"command": _same_place(kind), "error": message})
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise JobFailed(message) from None
    sys.exit(1)


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
    if text.startswith("Config group override must be"):
        text = _not_a_choice(sys.argv[1:]) or text
    return " ".join(text.split()) or type(error).__name__


def _not_a_choice(arguments: Sequence[str]) -> str:
    """Of the first argument that gives a group something else than one of its files, what it may be."""
    for argument in arguments:
        place, _, value = argument.partition("=")
        group = Path(CONF, place.partition("@")[0])
        if group.is_dir() and not all((group / f"{name}.yaml").exists() for name in value.split(",")):
            number = "; a number is thg=NUMBER" if place == "th_g" else ""
            return f"{argument}: must be one of {', '.join(sorted(p.stem for p in group.glob('*.yaml')))}{number}"
    return ""
