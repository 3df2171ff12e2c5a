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
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_builder, list_models

from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.tolerance import from_plain
from worstcase.data import ImageDataModule
from worstcase.evaluation.record import CHECKPOINT, Record
from worstcase.evaluation.settings import without_download


@dataclass(frozen=True)
class Run:
    """A finished training run: its crossbar (eval mode, th_g can be set), its data, its record."""

    crossbar: Crossbar
    datamodule: ImageDataModule
    record: Record


def load_run(folder: str | Path, *, checkpoint: str | Path | None = None, net: str | None = None) -> Run:
    """Load what a finished run trained.

    A foreign run executes no code and downloads nothing: see `build`. Checkpoints are read as plain tensors.

    Args:
        folder: of a training run.
        checkpoint: weights to use instead of the run's best.
        net: ``module:callable`` of the network, needed if the run used a custom one; see `user_net`.

    Raises:
        FileNotFoundError: no run finished there, or the checkpoint is missing.
        ValueError: the folder does not hold a training run; its network is custom and `net` is not given; its
            network or data set cannot be built; or the checkpoint cannot be read or belongs to another network.
    """
    folder = Path(folder)
    record = Record.load_training(folder)
    crossbar = make_crossbar(network(record.config, net), record.config)
    file = Path(checkpoint) if checkpoint else folder / CHECKPOINT
    load_weights(crossbar, file)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        raise ValueError(f"the checkpoint {file} holds no ranges of this network's outputs")
    return Run(crossbar.eval(), build(without_download(record.config["dataset"]), ImageDataModule), record)


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
    """Check that a network takes the images of a data set and has an output for each class.

    Raises:
        ValueError: it does not.
    """
    images, _ = next(iter(datamodule.test_dataloader()))
    images = images[:2].to(next(crossbar.parameters()).device)
    size = "x".join(map(str, images.shape[1:]))
    try:
        with evaluating(crossbar), torch.no_grad():
            shape = tuple(crossbar.net(images).shape)
    except RuntimeError as error:
        raise ValueError(f"the network does not take images of {size}: {str(error).splitlines()[0]}") from None
    if shape != (len(images), datamodule.num_classes):
        raise ValueError(
            f"the network's output has shape {shape} for {len(images)} images, but the data set has "
            f"{datamodule.num_classes} classes"
        )


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
    return found if ours else None


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


def load_weights(crossbar: Crossbar, file: Path) -> None:
    """Load a run's checkpoint, or a network's plain state dict in PyTorch's or the safetensors format.

    A run's checkpoint includes the ranges of quantised outputs. For other weights, `Crossbar.calibrate` must set
    them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, its tensors are not those of the network, or they are not finite.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        content: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a broken file can make the readers fail in any way
        reason = str(error).split("\n")[0].split(". ")[0] or type(error).__name__
        raise ValueError(
            f"cannot read the checkpoint {file}: it is truncated or holds more than tensors ({reason})"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"cannot read the checkpoint {file}: it does not hold named tensors")
    ranges = state.get("crossbar.outputs.ranges")
    for prefix in ("crossbar.net.", "module."):  # of a run, and of DataParallel
        if any(str(key).startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    net = crossbar.net
    if problem := _mismatch(net.state_dict(), state):
        raise ValueError(f"the checkpoint {file} does not belong to this {type(net).__name__}: {problem}")
    if broken := _not_finite(net, state):
        raise ValueError(f"the checkpoint {file} holds values that are not finite: {_cut(', '.join(broken))}")
    net.load_state_dict(state, strict=False)
    if crossbar.outputs is not None and ranges is not None:
        if not _are_ranges(ranges, crossbar.outputs.ranges):
            raise ValueError(f"the checkpoint {file} holds no ranges of this network's outputs")
        crossbar.outputs.load_state_dict({"ranges": ranges})


def _mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    problems = []
    missing = {key for key in expected.keys() - given.keys() if not key.endswith("num_batches_tracked")}
    if missing:  # the count came with PyTorch 0.4.1; older checkpoints have none
        problems.append(f"missing {', '.join(sorted(missing))}")
    if unexpected := given.keys() - expected.keys():
        problems.append(f"unexpected {', '.join(sorted(map(str, unexpected)))}")
    problems += [f"{key} is not a dense tensor" for key in expected if key in given and not _is_dense(given[key])]
    dense = {key: tensor for key, tensor in given.items() if _is_dense(tensor)}
    problems += [
        f"{key} is {tuple(dense[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in dense and dense[key].shape != tensor.shape
    ]
    problems += [
        f"{key} is {dense[key].dtype}, not {tensor.dtype}"
        for key, tensor in expected.items()
        if key in dense and _kind(dense[key]) != _kind(tensor)
    ]
    return _cut("; ".join(problems))


def _is_dense(tensor: Any) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not tensor.is_nested and not tensor.is_quantized and tensor.device.type == "cpu"


def _are_ranges(given: Any, expected: Tensor) -> bool:
    """Whether there is one range for each layer's outputs: finite and not negative, or NaN if unknown."""
    if not _is_dense(given) or given.shape != expected.shape or not given.is_floating_point():
        return False
    return bool((given.isnan() | (given.isfinite() & (given >= 0))).all())


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _not_finite(net: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Parameters that are not finite in the network's dtype, and buffers with NaN. A mask may be infinite."""
    parameters = {name for name, _ in net.named_parameters(remove_duplicate=False)}
    return [
        key
        for key, tensor in net.state_dict().items()
        if key in state
        and tensor.is_floating_point()
        and bool((~state[key].to(tensor.dtype).isfinite() if key in parameters else state[key].isnan()).any())
    ]


def _cut(text: str) -> str:
    return text if len(text) < 400 else text[:400] + " ..."
