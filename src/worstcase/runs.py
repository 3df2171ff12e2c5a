"""Loading what a finished run trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, list_models

from worstcase.batches import inputs_and_labels, of_each, taken, tensors_in
from worstcase.checkpoints import load_weights
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.modes import evaluating
from worstcase.chip.substitution import run
from worstcase.chip.tolerance import from_plain
from worstcase.data import ImageDataModule, OwnDataModule
from worstcase.evaluation.record import Record, weights_of
from worstcase.evaluation.settings import OWN_DATA, with_tolerances_in, without_download
from worstcase.task import check, decisions, ends_in_a_sigmoid, logits_of


@dataclass(frozen=True)
class Run:
    """A finished training run: its crossbar (eval mode, th_g can be set), its data, its record."""

    crossbar: Crossbar
    datamodule: ImageDataModule
    record: Record


def load_run(
    folder: str | Path,
    *,
    checkpoint: str | Path | None = None,
    net: str | None = None,
    of: str | None = None,
    data_dir: str | Path | None = None,
) -> Run:
    """Load what a finished run trained.

    A foreign run executes no code and downloads nothing: see `build`. Checkpoints are read as plain tensors.

    Args:
        folder: of a training run.
        checkpoint: weights to use instead of the run's best.
        net: ``module:callable`` of the network, needed if the run used a custom one; see `user_net`.
        of: ``module:callable`` of the data, needed if the run used ``dataset=own``.
        data_dir: the folder of its data set now; None: where it was.

    Raises:
        FileNotFoundError: no run finished there, or the checkpoint or its file of tolerances is missing.
        ValueError: the folder does not hold a training run; its network or data are custom and `net` or `of` is
            not given; its network or data set cannot be built; or the checkpoint cannot be read or belongs to
            another network.
    """
    folder = Path(folder)
    record = Record.load_training(folder)
    crossbar = make_crossbar(network(record.config, net), with_tolerances_in(folder, record.config))
    file = Path(checkpoint) if checkpoint else weights_of(folder)
    load_weights(crossbar, file)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        raise ValueError(f"the checkpoint {file} holds no ranges of this network's outputs")
    data = record.config["dataset"]
    if data_dir is not None and "data_dir" in data:
        data = {**data, "data_dir": str(data_dir)}
    return Run(crossbar.eval(), dataset(data, of), record)


def network(config: Mapping[str, Any], own: str | None = None) -> nn.Module:
    """The untrained network of a run's configuration, or the user's own.

    Raises:
        ValueError: the run used a custom network, which is built only if `own` names it.
    """
    if own:
        return user_net(own)
    if config["net"]:
        raise ValueError(
            f"this run uses a custom network, {config['net']}; if you trust it, pass net={config['net']}"
        )
    return build(config["model"]["net"], nn.Module)


def dataset(config: Mapping[str, Any], own: str | None = None) -> ImageDataModule:
    """The data set of a run's configuration.

    Raises:
        ValueError: the run used data of the user's code, which is run only if `own` names it.
    """
    if config.get("_target_") != OWN_DATA:
        return build(without_download(config), ImageDataModule)
    if not own:
        raise ValueError(
            f"this run uses data of its own, {config.get('of')}; if you trust it, pass of={config.get('of')}, "
            "in a command with dataset=own dataset.num_classes=NUMBER"
        )
    options = {key: config[key] for key in OWN_OPTIONS if key in config}
    return OwnDataModule(of=own, **options)


def make_crossbar(net: nn.Module, config: Mapping[str, Any]) -> Crossbar:
    """The crossbar of a network, with the settings of a configuration."""
    return Crossbar(
        net,
        from_plain(config["thg"]),
        full_scale=config["full_scale"],
        layers=config["layers"],
        exclude=config["exclude"],
        arrays=config.get("arrays", ()),
        mapping=DeviceMapping(**config.get("mapping", {})),
        weight_bits=config["model"]["weight_bits"],
        activation_bits=config["model"]["activation_bits"],
    )


def user_net(name: str) -> nn.Module:
    """Build the user's own network from ``module:callable``, called without arguments.

    Raises:
        ValueError: there is no such callable, or it returns no network.
    """
    try:
        net = resolve_name(name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"net={name}: must be module:callable that takes no arguments: {error}") from None
    if not isinstance(net, nn.Module):
        raise ValueError(f"net={name}: must return a torch.nn.Module, not {type(net).__name__}")
    return net


def check_fit(crossbar: Crossbar, datamodule: ImageDataModule) -> None:
    """Check that a network takes the inputs of a data set and decides among its classes.

    Of data of the user's own code, whose labels nobody has seen yet, all test batches are read.

    Raises:
        ValueError: it does not, or a test batch has no samples or a wrong label.
    """
    inputs, labels = inputs_and_labels(next(iter(datamodule.test_dataloader()), (torch.zeros(0),) * 2))
    if not len(labels):
        raise ValueError("the first test batch has no samples; leave empty batches out")
    device = next(crossbar.parameters()).device
    inputs, labels = of_each(lambda t: t.to(device), taken(inputs, slice(2))), labels[:2].to(device)
    size = ", ".join("x".join(map(str, t.shape[1:])) or "one number" for t in tensors_in(inputs))
    try:
        with evaluating(crossbar), torch.enable_grad():  # whose graph tells of a sigmoid
            outputs = run(crossbar.net, {}, of_each(Tensor.clone, inputs))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the network does not take inputs of {size}: {str(error).splitlines()[0]}") from None
    classes = decisions(outputs, labels)[0].shape[1]
    if classes != datamodule.num_classes:
        one_hot = labels.ndim > 1 and labels.shape == logits_of(outputs).shape
        raise ValueError(
            f"the network decides among {classes} classes, but the data set has {datamodule.num_classes} classes"
            + ("; of one-hot labels, give the number of each class" if one_hot else "")
        )
    check(outputs, labels, sigmoid=ends_in_a_sigmoid(outputs))
    if isinstance(datamodule, OwnDataModule):
        _check_batches(logits_of(outputs), datamodule)


def _check_batches(logits: Tensor, datamodule: ImageDataModule) -> None:
    """Check that each test batch has samples, and labels of a network's classes where each sample has one."""
    for number, batch in enumerate(datamodule.test_dataloader()):
        _, labels = inputs_and_labels(batch)
        if not len(labels):
            raise ValueError(f"test batch {number} has no samples; leave empty batches out")
        if logits.ndim == 2 and labels.ndim == 1:
            try:
                check(logits[:1].expand(len(labels), -1), labels.to(logits.device))
            except ValueError as error:
                raise ValueError(f"test batch {number}: {error}") from None


def build(config: Mapping[str, Any], kind: type) -> Any:
    """Build the network or the data set that a record names. There is no other way from a record to an object.

    A network is a class of ``worstcase.models`` or a classifier of ``torchvision.models``; a data set is a class
    of ``worstcase.data``. Arguments are numbers, strings, which are not interpreted, and lists of these. Nothing
    is downloaded: pretrained weights are left out, but the options that come with them are kept.

    Args:
        config: ``_target_``, and the arguments.
        kind: `nn.Module` or `ImageDataModule`.

    Raises:
        ValueError: it names anything else, or cannot be built from its arguments.
    """
    arguments = dict(config)
    target = str(arguments.pop("_target_", None))
    make = _network_of_torchvision(target, arguments) if kind is nn.Module else None
    make = make or _class_of_worstcase(target, kind)
    what, instead = _OWN[kind]
    if make is None or not all(map(_is_plain, arguments.values())):
        raise ValueError(
            f"{target} is not {what} or has arguments that are not plain, so it is not built from a record; "
            f"if you trust it, pass {instead}"
        )
    try:
        return make(**arguments)
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{target} cannot be built as the record says: {reason}") from error


_OWN: dict[type, tuple[str, str]] = {  # what may be built, and how to name anything else
    nn.Module: ("a network of worstcase.models or torchvision.models", "net=module:callable"),
    ImageDataModule: ("a data set of worstcase.data", "dataset=NAME"),
}
OWN_OPTIONS = ("num_classes", "batch_size", "val_fraction", "limit", "seed", "num_workers")
_PRETRAINED: dict[str, dict[str, Any]] = {  # what pretrained weights change besides the weights
    "googlenet": {"transform_input": True, "aux_logits": False},
    "inception_v3": {"transform_input": True},
}


def _class_of_worstcase(target: str, kind: type) -> Callable[..., Any] | None:
    home = "worstcase.models." if kind is nn.Module else "worstcase.data."
    try:
        found = resolve_name(target) if target.startswith(home) else None
    except (ImportError, AttributeError, ValueError):
        return None
    ours = inspect.isclass(found) and issubclass(found, kind) and found.__module__.startswith(home)
    return found if ours and found is not OwnDataModule else None  # that would run what it is told


def _network_of_torchvision(target: str, arguments: dict[str, Any]) -> Callable[..., Any] | None:
    """The builder of a classifier; the arguments become those of the network without pretrained weights."""
    package, _, name = target.rpartition(".")
    if name == "get_model":
        name = arguments.pop("name", None)
    if package != "torchvision.models" or name not in list_models(module=torchvision.models):
        return None
    pretrained = [arguments.pop(key, None) for key in ("weights", "weights_backbone", "pretrained", "progress")]
    if any(pretrained[:3]):
        arguments.update({**_PRETRAINED.get(name, {}), **arguments})
    return get_model_builder(name)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
