"""A chip that was read back: its file, its check against the network, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worstcase.attacks.passes import accuracy
from worstcase.batches import Loader
from worstcase.checks import choice
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.deviation import deviate

HOLDS = ("deviations", "weights")
NAMED = 3  # arrays, in a message


@dataclass(frozen=True)
class Chip:
    """A chip that was read back."""

    accuracy: float
    """0..1, over the reference set."""
    failed_by_array: dict[str, int]
    """For each array the number of weights outside the box: programmed, but not verified."""

    @property
    def failed(self) -> int:
        """The number of weights outside the box."""
        return sum(self.failed_by_array.values())


def read_chip(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Nothing in it is executed.

    Args:
        file: safetensors, or NumPy's .npz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or it is broken.
    """
    from safetensors.torch import load_file

    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"no chip at {file}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:  # a broken file can make the readers fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"cannot read the chip {file}: {reason}") from None
    raise ValueError(f"cannot read the chip {file}: must be .safetensors or .npz")


def measure(crossbar: Crossbar, loader: Loader, chip: Mapping[str, Any], holds: str = "deviations") -> Chip:
    """Score a chip, wherever its weights are, and count the weights that are outside the crossbar's box.

    Args:
        crossbar: the network as it was programmed.
        loader: the reference set.
        chip: a tensor or an array for each array, by name and of its shape, in weight units.
        holds: ``deviations`` from the programmed weights; or ``weights``, what the layers multiply with. Digital
            values beside these weights, as in a state dict, must be those of the network.

    Raises:
        ValueError: names, shapes or values cannot be right, or `holds` seems to be the other.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.4)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> batch = (torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> measure(crossbar, [batch], {"weight": np.array([[-1.5, 0.1], [0.0, 0.0]])})
        Chip(accuracy=0.5, failed_by_array={'weight': 1})
    """
    given, deviations = _read(crossbar, chip, holds)
    box = crossbar.box
    if holds == "weights":
        programmed = crossbar.programmed()
        failed = {name: _outside(name, read, programmed[name].detach(), box) for name, read in given.items()}
    else:
        failed = {name: box.outside({name: d}) for name, d in deviations.items()}
    return Chip(accuracy(crossbar, loader, deviations), failed)


def deviations_of(crossbar: Crossbar, chip: Mapping[str, Any], holds: str = "deviations") -> dict[str, Tensor]:
    """The deviations of a chip, by array in weight units; see `measure`."""
    return _read(crossbar, chip, holds)[1]


def _read(crossbar: Crossbar, chip: Mapping[str, Any], holds: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a chip holds, checked, and its deviations."""
    choice("chip_holds", holds, HOLDS)
    if not isinstance(chip, Mapping):
        raise ValueError(
            f"chip must be a dict of tensors or arrays, not {type(chip).__name__}; "
            "worstcase.evaluation.measured.read_chip(FILE) makes one of a file"
        )
    programmed = {name: w.detach() for name, w in crossbar.programmed().items()}
    given = {name: _tensor(name, values) for name, values in chip.items()}
    if holds == "weights":
        given = _without_digital(crossbar, given)
    given = _checked(given, programmed)
    other = {name: t - programmed[name].to(t.dtype) for name, t in given.items()}
    if sum(map(_square, other.values())) < sum(map(_square, given.values())) and holds == "deviations":
        raise ValueError(f"the chip's deviations are nearer to the programmed weights than to 0: {_other(holds)}")
    if sum(map(_square, other.values())) > sum(map(_square, given.values())) and holds == "weights":
        raise ValueError(f"the chip's weights are nearer to 0 than to the programmed ones: {_other(holds)}")
    return given, other if holds == "weights" else given


def _other(holds: str) -> str:
    other = HOLDS[holds == HOLDS[0]]
    return f"it seems to hold {other}, so say chip_holds={other}"


def _tensor(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the chip's {name} is no array of numbers: {error}") from None


def _checked(given: Mapping[str, Tensor], programmed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the arrays' order, where the weights are, in float32 at least."""
    problems = []
    if missing := [name for name in programmed if name not in given]:
        problems.append(f"it has no {_listed(missing)}")
    if unknown := [name for name in given if name not in programmed]:
        problems.append(f"no array is named {_listed(unknown)}; there are {_listed(list(programmed))}")
    both = [(name, given[name], weight) for name, weight in programmed.items() if name in given]
    problems += [
        f"{name} is {tuple(t.shape)}, not {tuple(weight.shape)}"
        for name, t, weight in both
        if t.shape != weight.shape
    ][:NAMED]
    if wrong := [name for name, t, _ in both if not t.is_floating_point() or not bool(t.isfinite().all())]:
        problems.append(f"{_listed(wrong)} must hold floating-point numbers that are finite")
    if problems:
        raise ValueError(f"the chip does not fit the network: {'; '.join(problems)}")
    return {
        name: t.to(weight.device, torch.promote_types(weight.dtype, torch.float32)) for name, t, weight in both
    }


def _without_digital(crossbar: Crossbar, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays' weights alone.

    Raises:
        ValueError: a digital value, or a second name of an array, is there with other values.
    """
    arrays = crossbar.programmed().keys()
    named = dict(crossbar.net.named_parameters(remove_duplicate=False))
    first = {id(named[name]): name for name in arrays if name in named}
    own = {**crossbar.net.state_dict(), **crossbar.weights()}
    kept = {name: t for name, t in given.items() if name in arrays or name not in own}
    for name, tensor in given.items():
        if name in kept:
            continue
        array = first.get(id(named.get(name)))
        should = given.get(array, tensor) if array else own[name]
        if tensor.shape != should.shape or not torch.equal(tensor.to(should.device, should.dtype), should):
            why = f"shares its tensor with {array}" if array else "is digital and exact"
            raise ValueError(f"the chip does not fit the network: {name} {why}, but has other values there")
    return kept


def _outside(name: str, read: Tensor, programmed: Tensor, box: Box) -> int:
    """The number of weights that no deviation in the box leads to, as W + d is rounded."""
    ends = (deviate(programmed, end[name].expand_as(programmed)) for end in (box.low, box.high))
    low, high = (end.to(read.dtype) for end in ends)
    return int(((read < low) | (read > high)).sum())


def _square(t: Tensor) -> float:
    return float(t.square().sum())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
