"""The graph of a network by torch.fx; a network whose graph would be another's is refused."""

from __future__ import annotations

import builtins
import copy
import operator
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from worstcase.batches import tensors_in
from worstcase.certificate.products import Unsupported
from worstcase.chip.substitution import parameters_by_name
from worstcase.task import which_decides

IN_PLACE_OPERATORS = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
ABOUT_SHAPE = ("__get__", "__len__", "size", "dim", "ndimension", "numel", "nelement", "is_floating_point")


def traced(net: nn.Module, in_devices: Collection[str]) -> fx.GraphModule:
    """The graph of a network, as the only layer ``0`` of another, so that a single layer is a network too.

    Args:
        net: the network; it is left as it is.
        in_devices: names of its parameters that differ from chip to chip.

    Raises:
        Unsupported: it cannot be traced, or what is traced would hold for the weights as they are now alone.
    """
    try:
        root = nn.Sequential(copy.deepcopy(net))  # as it runs forward, which may write to the network
        parameters = {id(p): name for name, p in root[0].named_parameters(remove_duplicate=False)}
        held = {key: name for key, name in parameters.items() if name in in_devices}
        with _proxies_are_tensors(), parameters_by_name(), _Constants(held):
            graph = _Tracer().trace(root)
        _leave_the_logits(graph)
        root[0] = net
        return fx.GraphModule(root, graph)
    except Exception as error:
        raise Unsupported(f"{type(net).__name__} cannot be traced by torch.fx ({first_line(error)})") from error


def _leave_the_logits(graph: fx.Graph) -> None:
    """The only output of a graph, of those that a network gives."""
    (end,) = (n for n in graph.nodes if n.op == "output")
    end.args = (which_decides(end.args[0]),)


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Proxy(fx.Proxy):
    """A proxy in which `x += y` stays in place."""


@contextmanager
def _proxies_are_tensors() -> Iterator[None]:
    """Within the block `isinstance` says so, so that no network takes another way while it is traced.

    A proxy that said it by its `__class__` would be read by PyTorch as a tensor in memory, and end the process. A
    proxy also has a length, and may be one of several sizes.
    """

    def is_instance(value: Any, kinds: Any) -> bool:
        return own_isinstance(value, kinds) or (type(value) is _Proxy and issubclass(Tensor, kinds))

    def length(value: Any) -> Any:
        shape: Any = value.shape if type(value) is _Proxy else None
        return own_len(value) if shape is None else shape[0]

    own_isinstance, own_len, zeros, ones = builtins.isinstance, builtins.len, torch.zeros, torch.ones
    builtins.isinstance, builtins.len = is_instance, length
    torch.zeros, torch.ones = _with_sizes_in_a_tuple(zeros), _with_sizes_in_a_tuple(ones)
    try:
        yield
    finally:
        builtins.isinstance, builtins.len = own_isinstance, own_len
        torch.zeros, torch.ones = zeros, ones


def _with_sizes_in_a_tuple(make: Any) -> Any:
    """PyTorch takes a proxy for a size only there."""
    return lambda *sizes, **options: make(sizes, **options) if sizes[1:] else make(*sizes, **options)


def _in_place(function: Any) -> Any:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _Proxy else super().create_arg(a)


class _Constants(TorchFunctionMode):
    """Refuses what a network computes from a parameter itself while it is traced, which would be a constant.

    It gets the parameter from `parameters()` and the like; `self.weight` is followed.
    """

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        self._parameters = parameters

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in([args, kwargs])
        names = [self._parameters[id(t)] for t in given if id(t) in self._parameters]
        followed = any(type(t) is _Proxy for t in given)
        result = function(*args, **kwargs)
        of_values = tensors_in([result]) or getattr(function, "__name__", "") not in ABOUT_SHAPE
        if names and of_values and not followed:
            raise TypeError(f"it computes with {names[0]} itself; use self.NAME in its forward")
        return result
