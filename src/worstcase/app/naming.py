"""Completes the settings of a job, and names its folder by them: the same job has the same folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from worstcase.app import ranges, schema
from worstcase.app.devices import in_numbers
from worstcase.app.doors import CONF, door
from worstcase.app.state import Begun
from worstcase.digests import digest_of_files
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import EVALUATIONS, Record, weights_of
from worstcase.evaluation.settings import (
    DATA_FILES,
    NO_MAPPING,
    with_tolerances_in,
    without_download,
    without_place,
)

RUN_ROOTS = (Path("outputs"), Path("multirun"))
ONLY_SHOWN = (
    "-h",
    "--help",
    "--hydra-help",
    "--version",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-sc",
    "--shell-completion",
)
"""Hydra's flags that only show something."""
WITHOUT_RUN = {  # what an evaluation takes from its training run, and its values where there is none
    "thg": 0.03,
    "full_scale": "layer_max",
    "layers": ["*"],
    "exclude": [],
    "arrays": [],
    "seed": 0,
    "data_dir": os.environ.get("WORSTCASE_DATA", "data"),
}


def completed(cfg: DictConfig) -> dict[str, Any]:
    """All settings of a job in plain types: equal for jobs that are the same.

    An evaluation takes what it does not say from its training run; one of the user's own network (net=,
    checkpoint=, dataset=) has none. What it takes is never resolved or instantiated: a string of a record stays
    that string.

    Raises:
        FileNotFoundError: there is no finished training run there, or none at all.
        ValueError: it does not say enough to do without one, or the run's record cannot be followed.
    """
    choice = None
    if "hydra" in cfg:
        choice = cfg.hydra.runtime.choices.get("method")
        _check_own_files(cfg.hydra)
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    schema.check_names(cfg)
    if "run" in cfg:
        return _completed_evaluation(cfg)
    settings = _plain(cfg)
    if choice:
        _check_own_method(choice, settings["method"])
    if "thg" in settings:
        settings["thg"] = in_numbers(settings["thg"], settings["sigmas"])
    if isinstance(settings.get("dataset"), dict):
        settings["dataset"] = _identified(settings["dataset"])
    if settings.get("init_from") and (digest := digest_of_files([Path(settings["init_from"])])):
        settings["init_digest"] = digest
    return settings


def _check_own_files(hydra: DictConfig) -> None:
    """Refuse a file in a folder of the user's settings in whose place Hydra would take one of ours."""
    for source in hydra.runtime.config_sources:
        if source.schema != "file" or os.path.realpath(source.path) == os.path.realpath(CONF):
            continue
        for ours in Path(CONF).rglob("*.yaml"):
            if (own := Path(source.path, ours.relative_to(CONF))).is_file():
                raise ValueError(f"{own}: worstcase has such a file, which it would take instead; rename yours")


def _check_own_method(choice: str, method: Any) -> None:
    """Refuse a class of the user's under the name of a method of ours, which the results would bear."""
    target = method.get("_target_") if isinstance(method, dict) else None
    if target and not str(target).startswith("worstcase.") and Path(CONF, "method", f"{choice}.yaml").is_file():
        raise ValueError(
            f"method={choice} with method._target_={target}: results would be named {choice}; name yours in "
            "FOLDER/method/NAME.yaml, and say --config-dir FOLDER method=NAME (docs/methods.md)"
        )


def _completed_evaluation(cfg: DictConfig) -> dict[str, Any]:
    if cfg.net and not cfg.run:
        if not cfg.checkpoint or "_target_" not in cfg.dataset:
            raise ValueError(f"net={cfg.net} needs checkpoint=FILE and dataset=NAME, or run=FOLDER")
        trained: Mapping[str, Any] = WITHOUT_RUN
    else:
        folder = Path(cfg.run) if cfg.run else newest_run()
        if "${" in str(folder.absolute()):  # Hydra would resolve it in the name of the evaluation's folder
            raise ValueError(f"run={folder}: its folder has ${{ in its name; rename it")
        trained = with_tolerances_in(folder, _training_record(folder).config)
        cfg.run = os.path.relpath(folder)
        if (own := trained.get("net")) and not cfg.net:
            raise ValueError(
                f"{cfg.run} uses a custom network, {own}; if you trust it, pass run={cfg.run} net={own}"
            )
    if cfg.get("pulses") is not None and cfg.thg is not None:
        raise ValueError(f"thg={cfg.thg} with pulses={cfg.pulses:g}: th_g follows from pulses; say one of them")
    chosen = "_target_" in cfg.dataset
    if chosen:  # its file refers to these two
        if cfg.data_dir is None and "${" in trained["data_dir"]:
            raise ValueError(f"the run's data_dir is {trained['data_dir']}; say data_dir=FOLDER")
        for key in ("data_dir", "seed"):
            if cfg[key] is None:
                cfg[key] = trained[key]
    settings = _plain(cfg)
    for key in WITHOUT_RUN:
        if settings[key] is None:
            settings[key] = trained.get(key, WITHOUT_RUN[key])
    settings["thg"] = in_numbers(settings["thg"], settings["sigmas"])
    if isinstance(settings["thg"], list):
        settings["thg"] = ranges.bounds(settings)
    mapping, said = trained.get("mapping") or NO_MAPPING, settings.get("mapping") or {}
    settings["mapping"] = {**mapping, **{key: own for key, own in said.items() if own is not None}}
    dataset = {key: value for key, value in settings["dataset"].items() if value is not None}
    if chosen:
        settings["dataset"] = {k: v for k, v in _identified(settings["dataset"]).items() if v is not None}
    else:
        settings["dataset"] = _of_run(trained["dataset"], dataset, settings["data_dir"])
    settings["weights"] = digest_of_files([Path(cfg.checkpoint or weights_of(Path(cfg.run)))])
    if cfg.get("chip"):
        settings["chip_digest"] = digest_of_files([Path(cfg.chip)])
        if settings["chip_digest"] is None:
            raise FileNotFoundError(f"no chip at {cfg.chip}; say chip=FILE, .safetensors or .npz")
    if cfg.run:
        if foreign := sorted(settings["model"].keys() - {"weight_bits", "activation_bits"}):
            raise ValueError(f"there is no setting model.{foreign[0]}; the network is the run's, or net=")
        bits = {key: value for key, value in settings["model"].items() if value is not None}
        settings["model"] = {**trained["model"], **bits}
    return settings


def _of_run(trained: Mapping[str, Any], said: Mapping[str, Any], data_dir: str) -> dict[str, Any]:
    """The training run's data set, with the settings that the command gives."""
    if unknown := sorted(said.keys() - trained.keys()):
        raise ValueError(f"there is no setting dataset.{unknown[0]}; there are {', '.join(trained)}")
    place = {"data_dir": data_dir} if "data_dir" in trained else {}
    return {**without_download(trained), **place, **said}


def _identified(dataset: dict[str, Any]) -> dict[str, Any]:
    """A data set's settings, with a digest of its files if they are what identifies it."""
    if "digest" not in dataset:
        return dataset
    files = [Path(str(dataset[key])) for key in DATA_FILES if dataset.get(key)]
    return {**dataset, "digest": digest_of_files(files)}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def naming_the_newest_run(words: Sequence[str]) -> list[str]:
    """Add run= of the newest training run to the words of a command line that names none.

    So the run is looked up once, all jobs of a sweep evaluate it, and their records name it.

    Raises:
        FileNotFoundError: there is no finished training run.
        ValueError: Hydra would resolve something in its folder's name.
    """
    if any(word.lstrip("+").partition("=")[0] in ("run", "net", *ONLY_SHOWN) for word in words):
        return list(words)
    run = str(newest_run())
    if "${" in run:
        raise ValueError(f"the newest training run lies in {run}: rename the folder, or say run=FOLDER of another")
    if not re.fullmatch(r"[\w./-]+", run):
        run = "'" + run.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return [*words, f"run={run}"]


def newest_run() -> Path:
    """The folder of the training run that finished last, in outputs/ and multirun/.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder, record in finished_runs(RUN_ROOTS):
        if record.kind == "train":
            return folder
    raise FileNotFoundError(
        f"no finished training run below outputs/ or multirun/; make one with: {door('train')}"
    )


def record_folders(said: Iterable[str]) -> list[Path]:
    """The folders in which a command looks for records.

    Raises:
        ValueError: none is said.
        NotADirectoryError: one does not exist; outputs/ and multirun/ need not.
    """
    folders = [Path(folder) for folder in said]
    if not folders:
        raise ValueError("folders=[]: must be one folder or more")
    for folder in folders:
        if not folder.is_dir() and folder not in RUN_ROOTS:
            raise NotADirectoryError(f"folders: there is no folder {folder}")
    return folders


def _training_record(folder: Path) -> Record:
    try:
        return Record.load_training(folder)
    except FileNotFoundError as error:
        if told := Begun.load(folder):
            why = f"it failed: {told.error}" if told.error else "it was killed, or is at work"
            raise FileNotFoundError(f"{error} ({why}); finish it with: {told.command}") from None
        below = [run for run, record in finished_runs([folder]) if record.kind == "train"]
        hint = f"below it there is {below[0]}" if below else f"make one with: {door('train')}"
        raise FileNotFoundError(f"{error}; {hint}") from None


def _run_folder(*, _root_: DictConfig) -> str:
    """A readable folder for a training; its digest tells apart what the name does not show."""
    settings = completed(_root_)
    choice = _root_.hydra.runtime.choices
    at = _shared(settings) or f"thg{ranges.bounds(settings)[0]:g}"
    name = f"{at}-seed{settings['seed']}-{_digest(settings)}"
    return f"{_own(settings['net']) or choice.model}-{choice.dataset}/{choice.method}/{name}"


def _evaluation_folder(*, _root_: DictConfig) -> str:
    """The folder of an evaluation, inside that of its training run."""
    settings = completed(_root_)
    choice = _root_.hydra.runtime.choices
    thgs = ranges.bounds(settings)
    at = "thg" + "-".join(f"{thg:g}" for thg in sorted({thgs[0], thgs[-1]}))
    name = f"{choice.attack}-{_shared(settings) or at}-{_digest(settings)}"
    return _among_evaluations(name, settings, choice.dataset)


def _shared(settings: Mapping[str, Any]) -> str:
    """How pulses are shared out, if they are, as part of a folder's name."""
    pulses = settings["pulses"]
    return "" if pulses is None else f"pulses{pulses:g}-{settings['share']}"


def _tolerance_folder(*, _root_: DictConfig) -> str:
    """The folder of a search for a tolerance, among the evaluations of its training run."""
    settings = completed(_root_)
    name = f"tolerance-{settings['accuracy']:g}-{_digest(settings)}"
    return _among_evaluations(name, settings, _root_.hydra.runtime.choices.dataset)


def _among_evaluations(name: str, settings: Mapping[str, Any], dataset: str) -> str:
    run = settings["run"]
    within = Path(run) if run else Path("outputs", f"{_own(settings['net'])}-{dataset}")
    return str(within.absolute() / EVALUATIONS / name)


def _own(net: str | None) -> str:
    """The name of a custom network, as part of a folder's name."""
    return net.split(":")[-1] if net else ""


def _digest(settings: Mapping[str, Any]) -> str:
    text = json.dumps(without_place(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# On import, so that the processes of a parallel launcher have them too.
schema.register()
OmegaConf.register_new_resolver(
    "of_scale", lambda quick, paper, *, _root_: paper if _root_.scale == "paper" else quick, replace=True
)
OmegaConf.register_new_resolver("door", door, replace=True)
OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
OmegaConf.register_new_resolver("evaluation_folder", _evaluation_folder, replace=True)
OmegaConf.register_new_resolver("tolerance_folder", _tolerance_folder, replace=True)
