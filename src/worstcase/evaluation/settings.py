"""What a run's configuration, as its record holds it, says of the run. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMED_DATA = tuple(f"worstcase.data.{name}DataModule" for name in ("MNIST", "CIFAR10", "TinyImageNet"))
"""Data sets that are the same wherever they lie."""


def trains_without_thg(config: Mapping[str, Any]) -> bool:
    """Training and selection are the same for every th_g; the method's file says so of the training.

    Example:
        >>> trains_without_thg({"method": {"trains_without_thg": True, "monitor": "val/accuracy"}})
        True
    """
    method = config.get("method") or {}
    return method.get("trains_without_thg") is True and method.get("monitor") == "val/accuracy"


def without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without where its data and its run lie, unless that tells which they are.

    It is equal for the same job elsewhere. An evaluation's weights are identified by their digest.

    Example:
        >>> mnist = {"_target_": "worstcase.data.MNISTDataModule", "data_dir": "here"}
        >>> without_place({"seed": 0, "data_dir": "here", "dataset": mnist})
        {'seed': 0, 'dataset': {'_target_': 'worstcase.data.MNISTDataModule'}}
    """
    dataset = config.get("dataset") or {}
    place = ("data_dir", "download") if dataset.get("_target_") in NAMED_DATA else ()
    places = ("data_dir", "run", "checkpoint") if config.get("weights") else ("data_dir",)
    kept = {key: value for key, value in config.items() if key not in places}
    return {**kept, "dataset": {key: value for key, value in dataset.items() if key not in place}}


def without_download(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A record's data set, but nothing is fetched because a record says so.

    Example:
        >>> without_download({"_target_": "worstcase.data.MNISTDataModule", "download": True})
        {'_target_': 'worstcase.data.MNISTDataModule', 'download': False}
    """
    return {**dataset, "download": False} if "download" in dataset else dict(dataset)
