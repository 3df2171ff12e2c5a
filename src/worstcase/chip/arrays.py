"""Which tensors of a network are held in devices.

Most layers multiply with their parameter as it is. A layer that has a forward of its own is run by itself, with
zeros as its input, to see what it multiplies with (a sign, a normed or masked weight), and in which call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from worstcase.chip.products import FIXED, Call, Origin, Place, Products, Sources
from worstcase.chip.substitution import run_alone, smallest_input, used_at

_KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "weight",
    nn.modules.conv._ConvNd: "weight",
    nn.Bilinear: "weight",
    nn.MultiheadAttention: "in_proj_weight|[qkv]_proj_weight",
    nn.RNNBase: r"weight_(ih|hh|hr)_l\d+(_reverse)?",
    nn.RNNCellBase: "weight_(ih|hh)",
}
_KINDS_BY_NAME = {"Conv1D": "weight", "CondConv2d": "weight"}  # of transformers and of timm
_BIASES = re.compile(r"bias|in_proj_bias|bias_(ih|hh)(_l\d+(_reverse)?)?")


@dataclass
class Array:
    """A tensor that is held in devices."""

    layer: nn.Module
    parameter: str
    """Its name in the layer."""
    names: list[str]
    """In the network: of the parameter, more than one where layers share it."""
    place: Place | None = None
    """Where the layer multiplies with what it computes; None: it multiplies with its parameter as it is."""
    sources: set[str] = field(default_factory=set)
    """The network's parameters that it is, or is computed from."""


@dataclass(frozen=True)
class Coverage:
    """The parts of a network that devices hold, and those that are digital and exact.

    Example:
        >>> Coverage({"head.weight": 75}, {"head.bias": 25}).share
        0.75
    """

    programmed: dict[str, int]
    """The number of weights of each array."""
    digital: dict[str, int]
    """The number of values of each digital parameter."""

    @property
    def weights(self) -> int:
        """The number of programmed values."""
        return sum(self.programmed.values())

    @property
    def values(self) -> int:
        """The number of values, programmed or digital."""
        return self.weights + sum(self.digital.values())

    @property
    def share(self) -> float:
        """The share of programmed values, 0..1."""
        return self.weights / self.values

    def __str__(self) -> str:
        return f"{self.weights:,} of {self.values:,} values are programmed ({self.share:.1%})"


# ---- finding them


def check_patterns(**settings: Sequence[str]) -> None:
    """Check that each setting is a list of patterns: a string would be taken letter by letter.

    Raises:
        ValueError: one is a string.
    """
    for name, patterns in settings.items():
        if isinstance(patterns, str):
            raise ValueError(f"{name}={patterns!r}: must be a list of patterns, such as [{patterns!r}]")


def programmed_layers(net: nn.Module, layers: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The layers, by name, that multiply their input with a weight and that the patterns choose.

    Raises:
        ValueError: a pattern fits none.
    """
    found = {name: module for name, module in net.named_modules() if _kind(module)}
    for pattern in (*layers, *exclude):
        if found and not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"no layer with a weight is named {pattern!r}; there are {', '.join(found)}")
    return {
        name: module
        for name, module in found.items()
        if any(fnmatchcase(name, pattern) for pattern in layers)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }


def find_arrays(net: nn.Module, layers: Mapping[str, nn.Module], named: Sequence[str]) -> dict[str, Array]:
    """The arrays of some layers and of parameters that the user names, by their first name in the network.

    Raises:
        ValueError: a layer computes its weight in a way that cannot be followed, a pattern fits no parameter, or
            an array lies in the same memory as another parameter.
    """
    arrays: dict[str, Array] = {}
    by_tensor: dict[int, Array] = {}
    for prefix, layer in layers.items():
        for parameter in _weights_of(layer):
            name = _join(prefix, parameter)
            weight = layer._parameters.get(parameter)
            place, sources = _place(prefix, layer, parameter)
            if weight is not None and not weight.numel():
                continue
            if place is None and weight is not None and id(weight) in by_tensor:
                by_tensor[id(weight)].names.append(name)
                by_tensor[id(weight)].sources.add(name)
                continue
            arrays[name] = Array(layer, parameter, [name], place, {_join(prefix, s) for s in sources})
            if weight is not None:
                by_tensor[id(weight)] = arrays[name]
    own = {name: (module, parameter) for name, module, parameter, _ in own_parameters(net)}
    for pattern in named:
        fitting = [name for name in own if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f"arrays: no parameter is named {pattern!r}; there are {', '.join(own)}")
        for name in fitting:
            if any(name in array.sources for array in arrays.values()):
                continue
            module, parameter = own[name]
            tensor = id(module._parameters[parameter])
            if tensor in by_tensor and by_tensor[tensor].place is None:
                by_tensor[tensor].names.append(name)
                by_tensor[tensor].sources.add(name)
                continue
            arrays[name] = by_tensor[tensor] = Array(module, parameter, [name], None, {name})
    _refuse_overlapping(net, {source for array in arrays.values() for source in array.sources})
    return arrays


def _refuse_overlapping(net: nn.Module, held: set[str]) -> None:
    """Parameters and buffers that lie in the same memory, as after `b.weight.data = a.weight.data`."""
    by_memory: dict[tuple[int, torch.dtype], list[tuple[str, Tensor]]] = {}
    for name, p in (*net.named_parameters(), *net.named_buffers()):
        if p.layout == torch.strided and p.numel() and type(p.data) is Tensor:
            by_memory.setdefault((p.untyped_storage().data_ptr(), p.dtype), []).append((name, p.data))
    for memory in (group for group in by_memory.values() if len(group) > 1):
        _, first = memory[0]
        taken = torch.zeros(len(first.untyped_storage()) // first.element_size(), dtype=torch.int32)
        for number, (name, t) in enumerate(memory, 1):
            own = taken.as_strided(t.shape, t.stride(), t.storage_offset())
            for other in own[own > 0].unique().tolist():
                if held & {name, memory[other - 1][0]}:
                    raise ValueError(
                        f"{memory[other - 1][0]} and {name} are two tensors in the same memory, so they would "
                        "deviate apart; make them one (b.weight = a.weight), or give one a memory of its own "
                        "(b.weight.data = b.weight.data.clone())"
                    )
            own.fill_(number)


def check_unchanged(net: nn.Module, arrays: Mapping[str, Array]) -> None:
    """Make sure that the network has the layers and the parameters in which its arrays were found.

    Raises:
        ValueError: it has not.
    """
    for name, array in arrays.items():
        same = array.place is not None or array.layer._parameters.get(array.parameter) is not None
        try:
            same &= net.get_submodule(name.rpartition(".")[0]) is array.layer
            for source in array.sources if array.place else ():
                net.get_parameter(source)
        except AttributeError:
            same = False
        if not same:
            raise ValueError(f"{name}: its layer was replaced or changed; make a new Crossbar of the network")


def used(array: Array) -> Tensor:
    """The tensor that an array's layer multiplies with, differentiable in its parameters."""
    own = array.layer._parameters.get(array.parameter)
    return own if array.place is None else used_at(array.place, array.layer)  # type: ignore[return-value]


def own_parameters(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each parameter's name in the network, module, name there, and itself; shared ones come several times."""
    for prefix, module in net.named_modules():
        for parameter, tensor in module._parameters.items():
            if tensor is not None:
                yield _join(prefix, parameter), module, parameter, tensor


def weights_of_layers(net: nn.Module) -> set[str]:
    """The names of the weights of all layers that could be programmed."""
    layers = programmed_layers(net, ("*",), ())
    return {_join(prefix, parameter) for prefix, layer in layers.items() for parameter in _weights_of(layer)}


def biases(layers: Mapping[str, nn.Module]) -> list[str]:
    """The names of the layers' biases."""
    return [
        _join(prefix, name)
        for prefix, layer in layers.items()
        for name, tensor in layer._parameters.items()
        if tensor is not None and _BIASES.fullmatch(name)
    ]


def coverage(net: nn.Module, arrays: Mapping[str, Array], sizes: Mapping[str, int]) -> Coverage:
    """The coverage of a network with arrays of these sizes; a table that shares a tensor with one is digital."""
    in_devices = {name for array in arrays.values() for name in array.sources}
    digital: dict[int, tuple[str, int]] = {}  # by tensor, which may have several names
    for name, _, _, tensor in own_parameters(net):
        if name not in in_devices:
            digital.setdefault(id(tensor), (name, tensor.numel()))
    return Coverage(dict(sizes), dict(digital.values()))


def state_dict_of(net: nn.Module, arrays: Mapping[str, Array], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's state dict with the weights of a chip, which plain PyTorch loads.

    Raises:
        ValueError: a layer computes its weight, or shares it with a table that is digital; or the network's own
            state dict leaves one out.
    """
    held: dict[str, Tensor] = dict(weights)
    for name, array in arrays.items():
        if array.place is not None:
            raise ValueError(f"no state dict holds the chip: the layer of {name} computes what it multiplies with")
        held |= dict.fromkeys(array.names, weights[name])
    owners = {id(net.get_parameter(name)): name for name in held}
    for name, _, _, tensor in own_parameters(net):
        owner = owners.get(id(tensor))
        if owner is not None and name not in held:
            raise ValueError(
                f"no state dict holds the chip: {owner} shares its tensor with {name}, which is digital"
            )
    shared = {name: owners.get(id(p)) for name, p in net.named_parameters(remove_duplicate=False)}
    places = {name: _memory(net.get_parameter(name)) for name in owners.values()}
    in_memory = {place: name for name, place in places.items() if place}
    state = net.state_dict()  # it knows the versions of layers, and may have names of its own
    missing = set(owners.values())
    for name, tensor in state.items():
        place = _memory(tensor)
        owner = in_memory[place] if place in in_memory else shared.get(name)
        missing.discard(owner)
        own = tensor if owner is None else held[owner]
        if isinstance(own, Tensor):  # and no extra state
            own = own.detach().clone()
            state[name] = own.contiguous() if own.layout == torch.strided else own  # as safetensors needs them
    if missing:
        raise ValueError(f"no state dict holds the chip: the network's own has no {', '.join(sorted(missing))}")
    return state


def _memory(t: Any) -> tuple[int, torch.Size] | None:
    """Where a tensor's numbers are."""
    return (t.data_ptr(), t.shape) if isinstance(t, Tensor) and t.layout == torch.strided else None


# ---- looking at one layer


def _kind(layer: nn.Module) -> str | None:
    """A pattern of the names of its weights; None: it has none."""
    named = next((_KINDS_BY_NAME[c.__name__] for c in type(layer).__mro__ if c.__name__ in _KINDS_BY_NAME), None)
    return next((names for kind, names in _KINDS.items() if isinstance(layer, kind)), named)


def _weights_of(layer: nn.Module) -> list[str]:
    """Names of a layer's weights, of those also that are computed from other parameters."""
    pattern = re.compile(_kind(layer) or "")
    plain = [name for name, tensor in layer._parameters.items() if tensor is not None and pattern.fullmatch(name)]
    parametrised = [name for name in getattr(layer, "parametrizations", {}) if pattern.fullmatch(name)]
    hooked = [name for name, t in vars(layer).items() if isinstance(t, Tensor) and pattern.fullmatch(name)]
    return [*plain, *parametrised, *hooked]


def _place(prefix: str, layer: nn.Module, parameter: str) -> tuple[Place | None, set[str]]:
    """Where a layer multiplies with what it computes, and its parameters that this is computed from."""
    is_parameter = layer._parameters.get(parameter) is not None
    if is_parameter and not (isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and _changes_forward(layer)):
        return None, {parameter}
    name = _join(prefix, parameter)
    calls: list[tuple[Call, dict[int | str, Origin]]] = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            zeros = smallest_input(layer).requires_grad_()
            leaves = {key: p.detach().clone().requires_grad_() for key, p in layer.named_parameters()}
            sources = Sources(leaves, [zeros])
            with Products(lambda call: calls.append((call, sources.meet(call)))):
                run_alone(layer, leaves, zeros)
    except Exception as error:  # whatever a foreign forward raises
        if is_parameter:
            return None, {parameter}  # the first batch shows whether it is right
        raise ValueError(_cannot(name, f"it does not run by itself: {error}")) from None
    found = [
        (Place(call.name, argument), origin)
        for call, origins in calls
        for argument, origin in origins.items()
        if (argument in (1, "weight") if call.name in FIXED else origin.names)
    ]
    if any(origin.is_itself and origin.names == {parameter} for _, origin in found):
        return None, {parameter}
    if len(found) != 1 or sum(found[0][0] in call for call, _ in calls) != 1:
        raise ValueError(_cannot(name, f"{len(found)} products take part in it"))
    place, origin = found[0]
    return place, set(origin.names) or {n for n, _ in layer.named_parameters() if n.startswith(parameter)}


def _cannot(name: str, why: str) -> str:
    layer = name.rpartition(".")[0] or "the network"
    return (
        f"{layer!r} computes its {name.rpartition('.')[2]} in a way that cannot be followed ({why}); make it a "
        "plain parameter (torch.nn.utils.parametrize.remove_parametrizations) or leave it out (exclude=)"
    )


def _changes_forward(layer: nn.Module) -> bool:
    """Whether its forward, or what runs before it, is not that of torch's own layer."""
    plain = type(layer).__module__.startswith("torch.nn.modules.")
    return not plain or bool(layer._forward_pre_hooks) or "forward" in vars(layer)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".removeprefix(".")
