"""Weights from a file: a run's checkpoint, or a state dict as people keep it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from worstcase.chip.crossbar import Crossbar

COMPILED = "_orig_mod."  # which torch.compile puts into names
NAMED = 3  # keys of each kind, in a message
PLAIN = "where the network is, make a plain file of it: torch.save(model.state_dict(), 'plain.pt')"


def load_weights(crossbar: Crossbar, file: Path) -> None:
    """Load a run's checkpoint, or a network's state dict in PyTorch's or the safetensors format.

    The state dict may lie below any key, such as ``state_dict``, and all its names may begin with any prefix, such
    as ``module.``. A run's checkpoint includes the ranges of quantised outputs. For other weights,
    `Crossbar.calibrate` must set them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, its tensors are not those of the network, it holds several networks that
            fit, or values are not finite.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    content = _read(file)
    net, expected = crossbar.net, crossbar.net.state_dict()
    found = list(_state_dicts(content, expected))
    if not found:
        raise ValueError(
            f"cannot read the checkpoint {file}: it holds no named tensors, at its top or below one key; {PLAIN}"
        )
    fitting = {place: state for place, state in found if not _mismatch(expected, state)}
    if not fitting:
        _, state = max(found, key=lambda one: len(one[1].keys() & expected.keys()))
        problem = _mismatch(expected, state)
        raise ValueError(f"the checkpoint {file} does not belong to this {type(net).__name__}: {problem}")
    first, *others = fitting
    if any(not _same(fitting[first], fitting[other]) for other in others):
        raise ValueError(
            f"the checkpoint {file} holds several networks that fit, below {', '.join(fitting)}; make a plain "
            "file of the one that you mean"
        )
    state = fitting[first]
    if broken := _not_finite(net, state):
        raise ValueError(f"the checkpoint {file} holds values that are not finite: {_some(broken)}")
    net.load_state_dict(state, strict=False)
    if crossbar.outputs is not None and (ranges := _ranges(content)) is not None:
        if not _are_ranges(ranges, crossbar.outputs.ranges):
            raise ValueError(f"the checkpoint {file} holds no ranges of this network's outputs")
        crossbar.outputs.load_state_dict({"ranges": ranges})


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with warnings.catch_warnings(action="ignore"):  # of a scripted network
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make the readers fail in any way
        text = str(error)
    if held := re.search(r"GLOBAL (\S+) was not an allowed", text):
        raise ValueError(
            f"cannot read the checkpoint {file}: it holds a {held[1]}, and reading that would run code; {PLAIN}"
        )
    if "TorchScript" in text:
        raise ValueError(f"cannot read the checkpoint {file}: it is a scripted network; {PLAIN}")
    if file.suffix == ".pt2":
        raise ValueError(f"cannot read the checkpoint {file}: it is an exported program; {PLAIN}")
    reason = text.split("\n")[0].split(". ")[0] or "empty"
    raise ValueError(f"cannot read the checkpoint {file}: it is truncated or holds more than tensors ({reason})")


def _state_dicts(content: Any, expected: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The dicts that may be the network's state dict, without prefix, and where each lies."""
    if not isinstance(content, dict):
        return
    if "averaging_state" in content:  # of Lightning's WeightAveraging, whose average is what was validated
        content = {key: value for key, value in content.items() if key != "current_model_state"}
    for key, state in [("", content), *content.items()]:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            continue
        if not any(isinstance(value, Tensor) for value in state.values()):
            continue
        state = {name.replace(COMPILED, ""): value for name, value in state.items()}
        for prefix, stripped in _by_prefix(state, expected).items():
            yield ".".join(filter(None, (str(key), prefix.removesuffix(".")))) or "the top", stripped


def _by_prefix(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """What lies below each prefix, without it, and without other networks that fit and lie further below."""
    parts: dict[str, dict[str, Any]] = {}
    prefixes = _prefixes(state, expected)
    fitting: tuple[str, ...] = ()
    for prefix in sorted(prefixes, key=len, reverse=True):
        below = tuple(other.removeprefix(prefix) for other in fitting if other.startswith(prefix))
        names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
        kept = [name for name in names if name in expected or not name.startswith(below)]
        parts[prefix] = {name: state[prefix + name] for name in kept}
        if not _mismatch(expected, parts[prefix]):
            fitting += (prefix,)
    return {prefix: parts[prefix] for prefix in prefixes}


def _prefixes(state: Mapping[str, Any], expected: Mapping[str, Tensor]) -> list[str]:
    """What names may begin with; nothing, first."""
    prefixes = {"": None}
    for name in [name for name in expected if not name.endswith("num_batches_tracked")][:1]:
        prefixes |= dict.fromkeys(key.removesuffix(name) for key in state if key.endswith(f".{name}"))
    return list(prefixes)


def _ranges(content: dict[str, Any]) -> Any:
    state = content.get("state_dict")
    state = state if isinstance(state, dict) else content
    return state.get("crossbar.outputs.ranges", state.get("outputs.ranges"))  # of a method, of a crossbar


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    problems = []
    missing = {key for key in expected.keys() - given.keys() if not key.endswith("num_batches_tracked")}
    if missing:  # the count came with PyTorch 0.4.1; older checkpoints have none
        problems.append(f"missing {_some(sorted(missing))}")
    if unexpected := given.keys() - expected.keys():
        problems.append(f"unexpected {_some(sorted(unexpected))}")
    both = [(key, tensor, given[key]) for key, tensor in expected.items() if key in given]
    problems += [f"{key} is not a dense tensor" for key, _, t in both if not _is_dense(t)][:NAMED]
    dense = [one for one in both if _is_dense(one[2])]
    problems += [
        f"{key} is {tuple(t.shape)}, not {tuple(tensor.shape)}"
        for key, tensor, t in dense
        if t.shape != tensor.shape
    ][:NAMED]
    problems += [
        f"{key} is {t.dtype}, not {tensor.dtype}" for key, tensor, t in dense if _kind(t) != _kind(tensor)
    ][:NAMED]
    return "; ".join(problems)


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


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
