"""All records as one table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worstcase.evaluation.finished_runs import runs_and_trainings
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import of_data, of_devices, trains_without_thg, without_place

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "folder": "folder of the run",
    "kind": "train or evaluate",
    "training": "folder of the training run; missing if weights were given or the training is gone",
    "network": "name of the network, from model= or net=",
    "dataset": "name of the data set, from dataset=",
    "method": "training method; missing if weights were given",
    "trained_thg": "th_g that the network was trained for",
    "trained_once": "whether one training, without th_g, serves every th_g; missing if weights were given",
    "seed": "seed of the training; missing if `training` is",
    "thg": "th_g of the attack",
    "as_trained": "whether the training was for this th_g; true for trainings without th_g and for given weights",
    "full_scale": "what th_g is relative to: layer_max or unit",
    "weight_bits": "bits of a weight; missing: float",
    "activation_bits": "bits of a layer's outputs; missing: float",
    "attack": "name of the attack",
    "attack_seed": "seed of the attack",
    "clean_accuracy": "accuracy as programmed",
    "attacked_accuracy": "lowest accuracy that this attack found at this th_g",
    "certified_accuracy": "proven at this th_g: no chip is below; missing if nothing is proven",
    "chip_accuracy": "accuracy of a chip that was read back; missing if none was",
    "heldout_accuracy": "accuracy on the half that a separate attack did not see; missing if not measured",
    "reference": "split that was attacked and scored",
    "samples": "number of samples in the reference set",
    "weights_perturbed": "number of weights in devices",
    "passes": "passes (one forward or one backward over the reference set) of the attack",
    "seconds": "time of the attack",
    "train_seconds": "time of the training",
    "epochs": "epochs of the training",
    "flags": "number of flags of the whole run",
    "explained": "whether the record has a diagnosis of the run's worst chip at this th_g",
    "network_settings": "settings of network and training, except method, th_g and seed",
    "method_settings": "settings of the training method",
    "reference_settings": "what was attacked: data, bits, which layers are programmed, the unit of th_g, devices",
    "attack_settings": "settings of the attack",
    "command": "command that repeats the run",
    "sweep": "command of the sweep that the run is a job of; missing for a single run",
    "device": "what computed: cpu, or a GPU; missing in older records",
    "commit": "commit of the library that did the run",
    "trained_commit": "commit of the library that trained the network",
}
"""What each column holds. Accuracies are fractions 0..1. Settings are JSON objects from dotted names to values."""

SETTINGS = ["network_settings", "method_settings", "reference_settings", "attack_settings"]
"""Rows that are equal in these and in network, data set, method, attack and th_g differ only in the seed."""

ATTACKING = ("worst_case_per_epoch", "worst_case_at_test")
"""The callbacks of conf/callbacks, which leave a training what it is."""

_FLOATS = [name for name in COLUMNS if name.endswith(("accuracy", "thg", "seconds"))] + ["passes"]
_INTEGERS = ["seed", "attack_seed", "weight_bits", "activation_bits", "samples", "epochs", "flags"]
_INTEGERS += ["weights_perturbed"]
_LARGEST = 2**63 - 1  # that a column can hold; a foreign record may have a larger number


def results_frame(folders: str | Path | Iterable[str | Path] = ("outputs", "multirun")) -> pd.DataFrame:
    """The finished runs below some folders: one row for each attack and th_g, oldest run first.

    Args:
        folders: one or several, searched for records; invalid records are skipped with a warning.

    Returns:
        A frame with the columns of `COLUMNS`, empty if nothing was found.

    Example:
        >>> frame = results_frame(["no-such-folder"])
        >>> list(frame.columns) == list(COLUMNS), len(frame)
        (True, 0)
    """
    import pandas as pd

    several = [folders] if isinstance(folders, str | Path) else folders
    rows = [row for found in runs_and_trainings(map(Path, several)) for row in _rows(*found)]
    for row in rows:
        row |= {name: min(row[name], _LARGEST) for name in _INTEGERS if row[name] is not None}
    types = dict.fromkeys(_FLOATS, "Float64") | dict.fromkeys(_INTEGERS, "Int64")
    types |= dict.fromkeys(("as_trained", "trained_once", "explained"), "boolean")
    frame = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return frame.astype({name: types.get(name, "string") for name in COLUMNS})


def _rows(folder: Path, record: Record, training: Record | None) -> Iterator[dict[str, Any]]:
    trained = (training or record).config
    run = {
        "folder": str(folder),
        "kind": record.kind,
        "training": os.path.normpath(folder / (record.source_run or "")) if training else None,
        "network": record.model,
        "dataset": record.dataset,
        "method": record.method,
        "trained_thg": _trained_thg(training),
        "trained_once": trains_without_thg(training.config) if training else None,
        "seed": training.seed if training else None,
        "full_scale": record.full_scale,
        "weight_bits": record.weight_bits,
        "activation_bits": record.activation_bits,
        "clean_accuracy": record.clean_accuracy,
        "reference": record.reference,
        "samples": record.samples,
        "weights_perturbed": record.parameters_perturbed,
        "train_seconds": training.train_seconds if training else None,
        "epochs": training.epochs if training else record.epochs,
        "flags": len(record.flags),
        "network_settings": _network_settings(record, training),
        "method_settings": _settings({key: without_place(trained).get(key) for key in ("method", "val_attack")}),
        "reference_settings": _reference_settings(record),
        "command": record.command,
        "sweep": record.sweep,
        "device": record.device,
        "commit": record.git_commit,
        "trained_commit": (training.trained_commit or training.git_commit) if training else None,
    }
    for attack in record.attacks:
        thg = _rounded(attack.thg)
        yield run | {
            "thg": thg,
            "as_trained": _as_trained(thg, record, training),
            "attack": attack.attack,
            "attack_seed": attack.seed,
            "attacked_accuracy": attack.accuracy,
            "certified_accuracy": record.certified_at(attack.thg),
            "chip_accuracy": record.chip["accuracy"] if record.chip else None,
            "heldout_accuracy": attack.heldout_accuracy,
            "passes": attack.passes,
            "seconds": attack.seconds,
            "explained": record.diagnosis is not None and thg == _rounded(record.diagnosis["thg"]),
            "attack_settings": _settings(attack.parameters),
        }


def _rounded(thg: float) -> float:
    """Rounded, so that equal th_g compare as equal: in floats 3 x 0.1 / 10 is not 0.03."""
    return round(float(thg), 9)


def _trained_thg(training: Record | None) -> float | None:
    """Pulses are shared out after the training. None also if a foreign record has several or none."""
    thg = training.config.get("thg") if training else None
    if training and training.config.get("pulses") is not None:
        by_array = thg.values() if isinstance(thg, Mapping) else [thg]
        thg = max((one for one in by_array if isinstance(one, int | float)), default=None)
    elif training and of_devices(training.config):
        thg = training.thg
    return _rounded(thg) if isinstance(thg, int | float) else None


def _as_trained(thg: float, record: Record, training: Record | None) -> bool:
    if training is None:
        return record.source_run is None  # true for given weights; a training that is gone is unknown
    if record.config.get("pulses") is not None:
        return False  # th_g followed from them
    if trains_without_thg(training.config):
        return True
    same_devices = of_devices(record.config) == of_devices(training.config)
    return thg == _trained_thg(training) and record.full_scale == training.full_scale and same_devices


def _network_settings(record: Record, training: Record | None) -> str:
    trained = (training or record).config
    init = "init_digest" if trained.get("init_digest") else "init_from"
    made = {key: trained.get(key) for key in ("net", "model", "trainer", "full_scale", "layers", "exclude")}
    made |= {"init_from": trained.get(init), "dataset": of_data(trained)}
    if trained.get("arrays"):
        made["arrays"] = trained["arrays"]
    if added := _added_callbacks(trained):
        made["callbacks"] = added
    given = ("checkpoint", "weights") if record.config.get("checkpoint") or not training else ("checkpoint",)
    return _settings(made | {key: record.config.get(key) for key in given})


def _added_callbacks(config: Mapping[str, Any]) -> dict[str, Any]:
    """Callbacks of a training besides those that only attack: averages of weights, early stopping."""
    said = config.get("callbacks")
    described = said.items() if isinstance(said, Mapping) else ()
    return {name: one for name, one in described if one is not None and name not in ATTACKING}


def _reference_settings(record: Record) -> str:
    attacked = {key: record.config.get(key) for key in ("layers", "exclude")} | {"data": of_data(record.config)}
    attacked |= of_devices(record.config)
    shown = ("dataset", "data_digest", "samples", "full_scale", "weight_bits", "activation_bits")
    return _settings(attacked | {key: getattr(record, key) for key in shown})


def _settings(config: Mapping[str, Any]) -> str:
    def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{before}{key}.")
            else:
                yield f"{before}{key}", value

    return json.dumps(dict(sorted(flat(config))))
