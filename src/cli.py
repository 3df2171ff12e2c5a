"""What the commands share: folders, skipping finished work, errors in one line, the table at the end."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import logging
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from src import schema, sweeps
from worstcase.results import CHECKPOINT, RECORD, Record, finished_runs, write_json

CONF = str(Path(__file__).parent.parent / "conf")
RUN_ROOTS = (Path("outputs"), Path("multirun"))
WITHOUT_RUN = {  # what an evaluation takes from its training run, and its values where there is none
    "thg": 0.03,
    "full_scale": "layer_max",
    "layers": ["*"],
    "exclude": [],
    "seed": 0,
    "data_dir": os.environ.get("WORSTCASE_DATA", "data"),
}

log = logging.getLogger(__name__)


class JobFailed(CompactHydraException):
    """A job that failed and has said why; a sweep goes on with the others."""


def start(main: Callable[[], Any]) -> NoReturn:
    """Run a Hydra main; an error is one line and a non-zero exit code (HYDRA_FULL_ERROR=1 shows it whole)."""
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Waiting threads of GNU OpenMP sleep sooner: as fast alone, 6 times as fast beside two busy processes.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them with a hint
    started = time.time()
    try:
        main()
    except JobFailed:
        for folder in sweeps.failures({*CheckBeforeRun.sweep, *RUN_ROOTS}, since=started - 1):
            print(*sweeps.failure(folder), sep="\n", file=sys.stderr)
        sys.exit(1)
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
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
            schema.check(completed(config))
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
    shown = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
    try:
        cfg = completed(cfg)
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
    handler = logging.FileHandler(folder / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        if not _lock(handler):
            log.info("another process is at work in %s, so left to it", shown)
            return
        if _is_finished(kind, cfg, folder, shown):  # by a process that held the lock just now
            return
        (folder / sweeps.ERROR).unlink(missing_ok=True)
        logging.getLogger().addHandler(handler)
        log.info("%s in %s", command(kind), shown)
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
    if (record.kind, record.config) != (kind, OmegaConf.to_container(cfg)):
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
        write_json(folder / sweeps.ERROR, {"command": command(kind), "error": message})
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise JobFailed(message) from None
    sys.exit(1)


def command(kind: str) -> str:
    """The command that repeats this job alone."""
    return shlex.join(["python", "-m", f"src.{kind}", *HydraConfig.get().overrides.task])


def completed(cfg: DictConfig) -> DictConfig:
    """What a configuration comes to: equal for jobs that are the same.

    An evaluation takes what it does not say from its training run; one of the user's own network (net=,
    checkpoint=, dataset=) has none. A training without th_g is the same for every thg of a sweep with `thgs`, and
    any other is attacked at its own thg.

    Raises:
        FileNotFoundError: there is no finished training run there, or none at all.
        ConfigError: it does not say enough to do without one.
    """
    cfg = cfg.copy()
    if "run" not in cfg:
        if cfg.get("thgs") and schema.trains_without_thg(cfg):
            cfg.thg = max(cfg.thgs)
        elif cfg.get("thgs"):
            cfg.thgs = None
        return cfg
    said = OmegaConf.masked_copy(cfg.dataset, [key for key, value in cfg.dataset.items() if value is not None])
    if cfg.net and not cfg.run:
        if not cfg.checkpoint or "_target_" not in said:
            raise schema.ConfigError(f"net={cfg.net} needs checkpoint=FILE and dataset=NAME, or run=FOLDER")
        trained = OmegaConf.create(WITHOUT_RUN)
    else:
        folder = Path(cfg.run) if cfg.run else _newest_run()
        trained = OmegaConf.create(_training_record(folder).config)
        cfg.run = os.path.relpath(folder)
    for key in WITHOUT_RUN:
        if cfg[key] is None:
            cfg[key] = trained[key]
    if "_target_" not in said:
        OmegaConf.set_struct(trained.dataset, True)
        if "data_dir" in trained.dataset:
            trained.dataset.data_dir = cfg.data_dir
        said = OmegaConf.merge(trained.dataset, said)
    cfg.dataset = said
    cfg.weights = _file_digest(Path(cfg.checkpoint or Path(cfg.run, CHECKPOINT)))
    if cfg.run:
        bits = {key: value for key, value in cfg.model.items() if value is not None}
        cfg.model = OmegaConf.merge(trained.model, bits)
    return cfg


def _file_digest(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:12]


def _newest_run() -> Path:
    for folder, record in finished_runs(RUN_ROOTS):
        if record.kind == "train":
            return folder
    raise FileNotFoundError(
        "no finished training run below outputs/ or multirun/; make one with: python -m src.train"
    )


def _training_record(folder: Path) -> Record:
    try:
        record = Record.load(folder)
    except FileNotFoundError as error:
        died = folder / "error.json"
        why = f" (it failed: {json.loads(died.read_text())['error']})" if died.is_file() else ""
        raise FileNotFoundError(
            f"{error}{why}; make one with: python -m src.train hydra.run.dir={shlex.quote(str(folder))}"
        ) from None
    if record.kind != "train":
        raise ValueError(f"{folder} holds an evaluation; run= takes the folder of a training run")
    return record


def _run_folder(*, _root_: DictConfig) -> str:
    """A stable, readable folder for a training configuration; the digest tells the rest of it apart."""
    cfg = completed(_root_)
    choice = _root_.hydra.runtime.choices
    thgs = sorted({min(cfg.thgs or [cfg.thg]), cfg.thg})
    name = f"thg{'-'.join(f'{thg:g}' for thg in thgs)}-seed{cfg.seed}-{_digest(cfg)}"
    return f"{_own(cfg.net) or choice.model}-{choice.dataset}/{choice.method}/{name}"


def _evaluation_folder(*, _root_: DictConfig) -> str:
    """An evaluation's folder lies in its training run's."""
    cfg = completed(_root_)
    choice = _root_.hydra.runtime.choices
    thgs = schema.bounds(cfg)
    name = f"{choice.attack}-thg{'-'.join(f'{thg:g}' for thg in sorted({thgs[0], thgs[-1]}))}-{_digest(cfg)}"
    within = Path(cfg.run) if cfg.run else Path("outputs", f"{_own(cfg.net)}-{choice.dataset}")
    return str(within.absolute() / "evaluations" / name)


def _own(net: str | None) -> str:
    """The user's own network as part of a folder's name."""
    return net.split(":")[-1] if net else ""


def _digest(root: DictConfig) -> str:
    settings = OmegaConf.masked_copy(root, [key for key in root if key != "hydra"])
    text = json.dumps(OmegaConf.to_container(settings, resolve=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# On import, so that they are there in the processes of a parallel launcher too.
schema.register()
OmegaConf.register_new_resolver(
    "of_scale", lambda quick, paper, *, _root_: paper if _root_.scale == "paper" else quick, replace=True
)
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("evaluation_folder", _evaluation_folder, replace=True)


def in_one_line(error: BaseException) -> str:
    """What was wrong, without the indented details that Hydra and OmegaConf add below."""
    if isinstance(error, HydraException) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        known = [str(key) for key in error.parent_node if key != "hydra"]
        similar = difflib.get_close_matches(str(error.key), known, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(known)}"
        return f"there is no setting {error.full_key}; {hint}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {str(error.msg).splitlines()[0]}"
    text = str(error).split("Config search path:")[0]
    return " ".join(text.split()) or type(error).__name__


def print_summary(record: Record, folder: str) -> None:
    """The table at the end of a run, on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    unit = "of each layer's largest weight" if record.full_scale == "layer_max" else "in weight units"
    seconds = [f"training {record.train_seconds:.1f}"] if record.train_seconds is not None else []
    names = dict.fromkeys(found.attack for found in record.attacks)
    seconds += [f"{name} {sum(f.seconds for f in record.attacks if f.attack == name):.1f}" for name in names]
    title = [f"{record.model} on {record.dataset}", record.method or "given weights", f"seed {record.seed}"]
    if record.weight_bits or record.activation_bits:
        title.append(f"bits {record.weight_bits or 'float'}/{record.activation_bits or 'float'}")
    table = Table(
        title=", ".join(title),
        box=box.SIMPLE_HEAD,
        show_header=False,
    )
    table.add_row("clean accuracy", f"{record.clean_accuracy:.2%} of {record.samples} {record.reference} images")
    several = len({found.thg for found in record.attacks}) > 1
    for found in record.attacks:
        at = f" at th_g {found.thg:g}" if several else ""
        table.add_row(f"lowest found ({found.attack}){at}", f"{found.accuracy:.2%}")
        if found.heldout_accuracy is not None:
            table.add_row(
                f"  attacked half, held-out half{at}",
                f"{found.attacked_half_accuracy:.2%}, {found.heldout_accuracy:.2%}",
            )
        if found.distribution:
            for row in _distribution_rows(found.distribution):
                table.add_row(*row)
    table.add_row("th_g", f"{'' if several else f'{record.thg:g} '}{unit}")
    table.add_row("seconds", ", ".join(seconds))
    console = Console()
    console.print(table)
    for flag in record.flags:
        console.print(f"  [bold red]flag[/]: {flag}", soft_wrap=True, highlight=False)
    console.print(f"  record: {folder}/{RECORD}", soft_wrap=True, highlight=False)


def _distribution_rows(of: dict[str, Any]) -> Iterator[tuple[str, str]]:
    deviation = "" if of["deviation"] is None else f" ± {of['deviation']:.2%}"
    yield (
        f"  {of['instances']} chips ({of['sampler']})",
        f"{of['mean']:.2%}{deviation}, lowest {of['minimum']:.2%}",
    )
    for kpp in of["kpp"]:
        low, high = ("?" if end is None else f"{end:.2%}" for end in (kpp["low"], kpp["high"]))
        yield f"  KPP at {kpp['percent']:g} %", f"{kpp['accuracy']:.2%}, with 95 % confidence {low} to {high}"
    yield "  chips worse than all of these", f"at most {of['unseen']:.2%}, with 95 % confidence"
    if of["infeasible"]:
        yield "  chips outside the bound", str(of["infeasible"])
