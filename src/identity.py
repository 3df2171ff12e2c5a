"""What a configuration comes to, and the stable folder that is named by it: equal for jobs that are the same."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from src import schema, sweeps
from worstcase.results import CHECKPOINT, Record, finished_runs
from worstcase.settings import trains_without_thg, without_place

RUN_ROOTS = (Path("outputs"), Path("multirun"))
WITHOUT_RUN = {  # what an evaluation takes from its training run, and its values where there is none
    "thg": 0.03,
    "full_scale": "layer_max",
    "layers": ["*"],
    "exclude": [],
    "seed": 0,
    "data_dir": os.environ.get("WORSTCASE_DATA", "data"),
}


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
        if cfg.get("thgs") and trains_without_thg(cfg):
            cfg.thg = max(cfg.thgs)
        elif cfg.get("thgs"):
            cfg.thgs = None
        return cfg
    if cfg.net and not cfg.run:
        if not cfg.checkpoint or "_target_" not in cfg.dataset:
            raise schema.ConfigError(f"net={cfg.net} needs checkpoint=FILE and dataset=NAME, or run=FOLDER")
        trained = OmegaConf.create(WITHOUT_RUN)
    else:
        folder = Path(cfg.run) if cfg.run else _newest_run()
        trained = OmegaConf.create(_training_record(folder).config)
        cfg.run = os.path.relpath(folder)
    for key in WITHOUT_RUN:
        if cfg[key] is None:
            cfg[key] = trained[key]
    said = OmegaConf.masked_copy(cfg.dataset, [key for key, value in cfg.dataset.items() if value is not None])
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
        if (died := folder / sweeps.ERROR).is_file():
            content = json.loads(died.read_text())
            raise FileNotFoundError(f"{error} (it failed: {content['error']}): {content['command']}") from None
        if (folder / CHECKPOINT.parent).is_dir():
            raise FileNotFoundError(f"{error}; finish it by its command, the first line of its run.log") from None
        below = [run for run, record in finished_runs([folder]) if record.kind == "train"]
        hint = f"below it there is {below[0]}" if below else "make one with: python -m src.train"
        raise FileNotFoundError(f"{error}; {hint}") from None
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
    text = json.dumps(without_place(OmegaConf.to_container(settings, resolve=True)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# On import, so that they are there in the processes of a parallel launcher too.
schema.register()
OmegaConf.register_new_resolver(
    "of_scale", lambda quick, paper, *, _root_: paper if _root_.scale == "paper" else quick, replace=True
)
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("evaluation_folder", _evaluation_folder, replace=True)
