"""What the configuration in a record says about the run. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from worstcase.chip.tolerance import NAME

NAMED_DATA = tuple(f"worstcase.data.{name}DataModule" for name in ("MNIST", "CIFAR10", "TinyImageNet"))
"""Data sets that are the same in every folder."""

LIBRARIES = ("worstcase", "torch", "torchvision", "lightning")
"""Whose classes are not code of the user's."""
OWN_DATA = "worstcase.data.OwnDataModule"
"""Data of the user's own code, which a record cannot say again."""
DATA_FILES = ("file", "test", "train")
"""Settings that name a data set's files, where it has a digest of their content."""


SHARED = ("pulses", "share", "programming")
"""What th_g follows from where pulses are shared out."""
NEWER: dict[tuple[str, ...], dict[str, Any]] = {
    (): {"search_dtype": None, "reprogram": None},
    ("method",): {"verified": False, "reuse": False, "warm_up": None, "decades": None, "loss": "cross_entropy"},
    ("callbacks", "worst_case_at_test"): {"search_dtype": None},
}
"""By their place, settings that were added later, and the value that leaves a job what it was before them."""
NO_MAPPING = {"pair": False, "device_bits": None, "cut_off": False}
"""The settings of one device a weight, with a digital sign."""


def of_devices(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of devices besides one number as th_g; empty, as in older records, if nothing.

    Patterns of arrays' names are in pairs with their tolerances, as their order counts. Of tolerances in a file it
    is the digest.

    Example:
        >>> of_devices({"thg": {"fc*": 0.01, "*": 0.03}, "arrays": [], "mapping": NO_MAPPING})
        {'thg': [['fc*', 0.01], ['*', 0.03]]}
    """
    said: dict[str, Any] = {}
    if isinstance(thg := config.get("thg"), Mapping) and "digest" in thg:
        said["thg"] = {"digest": thg["digest"]}
    elif isinstance(thg, Mapping):
        said["thg"] = thg if "conductance" in thg else [[pattern, one] for pattern, one in thg.items()]
    if config.get("arrays"):
        said["arrays"] = config["arrays"]
    if config.get("mapping") not in (None, NO_MAPPING):
        said["mapping"] = config["mapping"]
    if config.get("pulses") is not None:
        said |= {key: config.get(key) for key in SHARED}
    return said


def with_tolerances_in(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration of a run; tolerances of single weights are in its own folder, whatever file it names.

    Example:
        >>> with_tolerances_in(Path("run"), {"thg": {"file": "/elsewhere", "digest": "0a"}})
        {'thg': {'file': 'run/tolerances.safetensors', 'digest': '0a'}}
    """
    thg = config.get("thg")
    if isinstance(thg, Mapping) and "digest" in thg:
        return {**config, "thg": {**thg, "file": str(folder / NAME)}}
    return config


def trains_without_thg(config: Mapping[str, Any]) -> bool:
    """Whether training and selection of the checkpoint do not depend on th_g. The method's YAML says so.

    Example:
        >>> trains_without_thg({"method": {"trains_without_thg": True, "monitor": "val/accuracy"}})
        True
    """
    callbacks = config.get("callbacks")
    described = callbacks.values() if isinstance(callbacks, Mapping) else ()
    watched = {str(one.get("monitor")) for one in described if isinstance(one, Mapping)}
    if watched & {"val/attacked_accuracy", "val/certified_accuracy"}:
        return False  # such as early stopping
    method = config.get("method") or {}
    of_devices = method.get("sigma", 0) is None or method.get("verified") is True
    return method.get("trains_without_thg") is True and method.get("monitor") == "val/accuracy" and not of_devices


def is_of_own_code(config: Mapping[str, Any]) -> bool:
    """Whether the network or the data of a job come from code of the user's, which its settings only name.

    Example:
        >>> is_of_own_code({"net": "mine:Net", "dataset": {}})
        True
    """
    return bool(config["net"]) or config["dataset"].get("_target_") == OWN_DATA


def trains_by_own_code(config: Mapping[str, Any]) -> bool:
    """Whether anything that makes the network of a job is code of the user's.

    Example:
        >>> trains_by_own_code({"net": None, "dataset": {}, "method": {"_target_": "mine.Method"}})
        True
    """
    trains = {key: value for key, value in config.items() if key not in ("suite", "test_attack", "callbacks")}
    callbacks = config.get("callbacks")
    if isinstance(callbacks, Mapping):
        trains["callbacks"] = {key: one for key, one in callbacks.items() if key != "worst_case_at_test"}
    return is_of_own_code(config) or any(target.partition(".")[0] not in LIBRARIES for target in _targets(trains))


def _targets(settings: Any) -> Iterator[str]:
    """The classes that settings name, at any depth."""
    if isinstance(settings, Mapping):
        if isinstance(target := settings.get("_target_"), str):
            yield target
        settings = settings.values()
    for value in settings if isinstance(settings, Iterable) and not isinstance(settings, str) else ():
        yield from _targets(value)


def without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that identifies a job: without its threads, and the folders of its data and its run.

    Data sets that only their folder identifies keep it. Digests identify the weights that an evaluation attacks or
    a training starts from, a chip that was read back, and data in files. Devices of which nothing is said are left
    out: a job is the same as before they could be said. Numbers as keys are words, as a record has them.

    Example:
        >>> mnist = {"_target_": "worstcase.data.MNISTDataModule", "data_dir": "here"}
        >>> without_place({"seed": 0, "data_dir": "here", "dataset": mnist})
        {'seed': 0, 'dataset': {'_target_': 'worstcase.data.MNISTDataModule'}}
    """
    dataset = config.get("dataset") or {}
    place: tuple[str, ...] = ("data_dir", "download") if dataset.get("_target_") in NAMED_DATA else ()
    place += DATA_FILES if dataset.get("digest") else ()
    places = ["data_dir", "threads", "arrays", "mapping", "sigmas"]  # sigmas are in the table of thg
    if config.get("weights"):
        places += ["run", "checkpoint"]
    if config.get("chip_digest"):
        places.append("chip")
    if config.get("init_digest"):
        places.append("init_from")
    if "share" in config:
        places += SHARED
    kept = {key: value for key, value in _as_before(config).items() if key not in places} | of_devices(config)
    return {**kept, "dataset": {key: value for key, value in dataset.items() if key not in place}}


BESIDE_TEST_DATA = ("batch_size", "num_workers", "val_fraction", "augmented")
"""Settings of a data set that its test split does not depend on, as it does not on the seed."""


def of_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run's data set, without its seed and its folder.

    Example:
        >>> of_data({"dataset": {"limit": 100, "seed": 1}})
        {'limit': 100}
    """
    return {key: value for key, value in without_place(config)["dataset"].items() if key != "seed"}


def of_test_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those of them that the test split depends on, without null: settings that came later leave it what it was.

    Example:
        >>> of_test_data({"dataset": {"limit": 100, "seed": 1, "batch_size": 32, "digest": None}})
        {'limit': 100}
    """
    said = of_data(config).items()
    return {key: value for key, value in said if value is not None and key not in BESIDE_TEST_DATA}


def _as_before(settings: Mapping[str, Any], *place: str) -> dict[str, Any]:
    newer = NEWER.get(place, {})
    return {
        str(key): _as_before(value, *place, key) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in newer or type(value) is not type(newer[key]) or value != newer[key]
    }


def without_download(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A record's data set with its download switched off.

    Example:
        >>> without_download({"_target_": "worstcase.data.MNISTDataModule", "download": True})
        {'_target_': 'worstcase.data.MNISTDataModule', 'download': False}
    """
    return {**dataset, "download": False} if "download" in dataset else dict(dataset)
