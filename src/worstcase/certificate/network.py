"""Interval bounds of a whole network: its graph by torch.fx, and the rule of each part."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from worstcase.certificate.rules import (
    Interval,
    Product,
    Unsupported,
    Weight,
    added,
    affine,
    average,
    batch_norm,
    corners,
    margins,
    monotone,
    normalised,
    of_type,
    positive,
    rising,
    scaled,
    signless,
    smooth,
    smooth_positive,
    subtracted,
    terms,
    valley,
)
from worstcase.chip.crossbar import Crossbar

_LINEAR = {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d}
_TRANSPOSED = {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}
_BATCH_NORMS = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
_DROPOUTS = {nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout}
_SHAPES = {nn.Identity, nn.Flatten, nn.Unflatten, *_DROPOUTS}
_MAX_POOLS: set[type] = {nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d}
_MAX_POOLS |= {nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d}
_AVERAGES = {nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d}
_AVERAGES |= {nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d}
_GELU = valley(-0.7517915246935646, -0.7524614220710163)  # exact, and by tanh
_SILU, _MISH, _HARDSWISH = valley(-1.278464542761074), valley(-1.1924312145154954), valley(-1.5)

Rule = Callable[..., Any]
"""Of the module or function, and its arguments with intervals among them."""

_MODULES: dict[type, Rule] = {
    **dict.fromkeys([*_SHAPES, *_MAX_POOLS, nn.PixelShuffle, nn.ChannelShuffle, nn.ZeroPad2d], monotone),
    **dict.fromkeys(_AVERAGES, average),
    **dict.fromkeys([nn.ReLU, nn.ReLU6, nn.Hardsigmoid], positive),
    **dict.fromkeys([nn.LeakyReLU, nn.ELU, nn.CELU], rising),
    **dict.fromkeys([nn.Tanh, nn.SELU, nn.LogSigmoid, nn.Softsign], smooth),
    **dict.fromkeys([nn.Sigmoid, nn.Softplus], smooth_positive),
    nn.Hardtanh: signless,
    nn.GELU: _GELU,
    nn.SiLU: _SILU,
    nn.Mish: _MISH,
    nn.Hardswish: _HARDSWISH,
}
_SHAPE_METHODS = ["view", "reshape", "flatten", "unflatten", "permute", "transpose", "squeeze", "unsqueeze"]
_SHAPE_METHODS += ["contiguous", "chunk", "split", "expand", "detach", "clone"]
_SHAPE_FUNCTIONS = {getattr(torch, n) for n in _SHAPE_METHODS if hasattr(torch, n)} | {operator.getitem}
_SHAPE_FUNCTIONS |= {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}
_FUNCTIONS: dict[Any, Rule] = {
    **dict.fromkeys([*_SHAPE_FUNCTIONS, torch.cat, torch.concat, torch.stack], monotone),
    **dict.fromkeys([F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d], monotone),
    **dict.fromkeys([F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d], monotone),
    **dict.fromkeys([F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.mean], average),
    **dict.fromkeys([F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d], average),
    **dict.fromkeys([F.relu, torch.relu, F.relu6, F.hardsigmoid], positive),
    **dict.fromkeys([F.leaky_relu, F.elu, F.celu], rising),
    **dict.fromkeys([torch.tanh, F.tanh, F.selu, F.logsigmoid, F.softsign], smooth),
    **dict.fromkeys([torch.sigmoid, F.sigmoid, F.softplus], smooth_positive),
    **dict.fromkeys([F.hardtanh, F.pad], signless),
    **dict.fromkeys([operator.add, torch.add], added),
    **dict.fromkeys([operator.sub, torch.sub], subtracted),
    **dict.fromkeys([operator.mul, torch.mul], corners),
    F.gelu: _GELU,
    F.silu: _SILU,
    F.mish: _MISH,
    F.hardswish: _HARDSWISH,
}
_METHODS: dict[str, Rule] = {
    **dict.fromkeys(_SHAPE_METHODS, monotone),
    "mean": average,
    "relu": positive,
    "tanh": smooth,
    "sigmoid": smooth_positive,
    "add": added,
    "sub": subtracted,
    "mul": corners,
}
_QUERIES = ("size", "dim", "numel", "shape", "ndim", "dtype", "device")
_LINEAR_FUNCTIONS = {F.linear, F.conv1d, F.conv2d, F.conv3d}
_TRANSPOSED_FUNCTIONS = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_IN_PLACE: dict[Any, Any] = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}
_IN_PLACE |= {torch.relu_: torch.relu, F.relu_: F.relu}


@dataclass(frozen=True, eq=False)
class _Product:
    """A linear layer or convolution that was not computed yet: with a margin it is tighter if it is the last."""

    product: Product
    x: Interval
    weight: Weight

    def bounds(self) -> Interval:
        return affine(self.product, self.x, self.weight)


class Bounds(fx.Interpreter):
    """What the network of a crossbar computes on any chip in its box.

    Raises:
        Unsupported: a part of it has no rule, or it cannot be traced.
    """

    def __init__(self, crossbar: Crossbar) -> None:
        self._crossbar, weights, box = crossbar, crossbar.weights(), crossbar.box
        _check(crossbar.net, weights)
        traced = _traced(crossbar.net)
        _check_in_place(traced)
        super().__init__(traced)
        self.extra_traceback = False
        self._movable = bool(box.movable)
        self._quantised = crossbar.outputs.quantised if crossbar.outputs else {}
        leaves = {self.fetch_attr(n.target) for n in traced.graph.nodes if n.op == "call_module"}
        if not self._quantised.keys() <= leaves:
            raise Unsupported("quantised outputs of a layer that is traced into parts")
        self._weights: dict[str, Weight] = {}
        self._values: dict[int, Interval] = {}  # of a parameter's id, where a chip computes with something else
        for name, weight in weights.items():
            low, high = ((weight + end[name] if name in end else weight).detach() for end in (box.low, box.high))
            self._values[id(crossbar.net.get_parameter(name))] = Interval(low, high)

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        """How far the label's output is above each other on every chip, at least: (N, classes).

        Its own is infinite. The answer is right on every chip where all others are above 0.
        """
        if self._movable:
            y = self.run(Interval.of(self._crossbar.laid_out(images)))
        else:  # there is one chip
            y = Interval.of(self._crossbar(images))
        if isinstance(y, _Product):
            if y.x.low.ndim == y.weight.box.low.ndim == 2:
                return margins(y.x, y.weight, labels)
            y = y.bounds()
        if not isinstance(y, Interval):
            raise Unsupported(f"an output that is a {type(y).__name__}")
        column = labels[:, None]
        return (y.low.gather(1, column) - y.high).scatter(1, column, math.inf)

    def run_node(self, n: fx.Node) -> Any:
        try:
            y = super().run_node(n)
            is_last = all(user.op == "output" for user in n.users)
            return y.bounds() if isinstance(y, _Product) and not is_last else y
        except Unsupported:
            raise
        except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
            raise Unsupported(f"{_name(n.target)}: {_first_line(error)}") from error

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._of(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        kind, x = type(module), Interval.of(args[0])
        y: Any
        if len(args) > 1 or kwargs:
            raise Unsupported(f"{_name(target)} ({kind.__name__}) with several arguments")
        if kind in _LINEAR or kind in _TRANSPOSED:
            if target not in self._weights:
                weight = Interval.of(self._of(module.weight))
                bias = None if module.bias is None else Interval.of(self._of(module.bias))
                count = terms(weight.low, transposed=kind in _TRANSPOSED)
                self._weights[target] = Weight(weight, bias, count)
            y = _Product(_product(module), x, self._weights[target])
        elif kind in _BATCH_NORMS and module.running_mean is not None and not module.training:
            ones = torch.ones_like(module.running_mean)
            scale, shift = (ones, 0 * ones) if module.weight is None else (module.weight, module.bias)
            y = batch_norm(x, module.running_mean, module.running_var, scale, shift, module.eps)
        elif kind is nn.GroupNorm:
            grouped = monotone(lambda t: t.reshape(len(t), module.num_groups, -1), x)
            y = monotone(lambda t: t.reshape(x.low.shape), normalised(grouped, module.eps))
            ends = [
                p if p is None else p.reshape(-1, *[1] * (x.low.ndim - 2)) for p in (module.weight, module.bias)
            ]
            y = scaled(y, *ends)
        elif kind is nn.LayerNorm:
            flat = monotone(lambda t: t.flatten(-len(module.normalized_shape)), x)
            y = monotone(lambda t: t.reshape(x.low.shape), normalised(flat, module.eps))
            y = scaled(y, module.weight, module.bias)
        elif kind is nn.Embedding and x.is_point and id(module.weight) not in self._values:
            y = Interval.of(module(x.low))
        elif kind in _MODULES and not (kind in _DROPOUTS and module.training):
            y = _MODULES[kind](_not_in_place(module), x)
        else:
            raise Unsupported(f"{_name(target)} ({kind.__name__})")
        if module in self._quantised:
            y = monotone(self._quantised[module], y.bounds() if isinstance(y, _Product) else y)
        return y

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        if target in _LINEAR_FUNCTIONS or target in _TRANSPOSED_FUNCTIONS:
            return _function(target, *args, **kwargs)
        if not list(of_type(Interval, [*args, *kwargs.values()])):
            return super().call_function(target, args, kwargs)
        if target is getattr and args[1] in _QUERIES:
            return getattr(args[0].low, args[1])
        target = _IN_PLACE.get(target, target)
        if target is operator.truediv and not isinstance(args[1], Interval):
            return corners(target, *args)
        if target not in _FUNCTIONS or kwargs.get("training"):
            raise Unsupported(_name(target) + " in training mode" * bool(kwargs.get("training")))
        return _FUNCTIONS[target](target, *args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not list(of_type(Interval, [*args, *kwargs.values()])):
            return super().call_method(target, args, kwargs)
        if target in _QUERIES:
            return getattr(args[0].low, target)(*args[1:], **kwargs)
        name = {"view": "reshape"}.get(target, target).rstrip("_")  # a view may not fit how these lie in memory
        if name not in _METHODS:
            raise Unsupported(f"Tensor.{target}")
        return _METHODS[name](lambda t, *rest, **options: getattr(t, name)(*rest, **options), *args, **kwargs)

    def _of(self, value: Any) -> Any:
        return self._values.get(id(value), value)


def _product(layer: nn.Module) -> Product:
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return functional_call(layer, values, (x,))

    return product


def _function(f: Any, input: Any, weight: Any, bias: Any = None, *rest: Any, **options: Any) -> _Product:
    weight, bias = Interval.of(weight), None if bias is None else Interval.of(bias)
    count = terms(weight.low, transposed=f in _TRANSPOSED_FUNCTIONS)
    return _Product(lambda x, w, b: f(x, w, b, *rest, **options), Interval.of(input), Weight(weight, bias, count))


def _not_in_place(module: nn.Module) -> nn.Module:
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        module.inplace = False  # type: ignore[assignment]
    return module


# ---- what is refused


def _check(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    kinds = {str(w.dtype).removeprefix("torch.") for w in weights.values()} - {"float32", "float64"}
    if kinds or torch.is_autocast_enabled():
        raise Unsupported(f"weights of {', '.join(kinds) or 'autocast'}: float32 or float64 is needed")
    if torch.get_float32_matmul_precision() == "medium":
        raise Unsupported("torch.set_float32_matmul_precision('medium'): high or highest is needed")
    for name, module in net.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"{name or 'the network'} ({type(module).__name__}) with a hook")
    for name in weights:
        try:
            net.get_parameter(name)
        except AttributeError:
            raise Unsupported(f"{name}, an array that is no parameter") from None


def _traced(net: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(nn.Sequential(net))  # so that a network of one layer is a layer too
    except Exception as error:
        raise Unsupported(f"{type(net).__name__} cannot be traced by torch.fx ({_first_line(error)})") from error


def _check_in_place(traced: fx.GraphModule) -> None:
    """Refuse what changes a tensor that is used again: the rules compute nothing in place.

    Views of the tensor and what it is a view of count too.
    """

    def layer(node: fx.Node) -> Any:
        return traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def in_place(node: fx.Node) -> bool:
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        ends = node.op.startswith("call_") and str(name).endswith("_") and not str(name).endswith("__")
        return bool(
            node.target in _IN_PLACE
            or ends
            or node.kwargs.get("inplace")
            or getattr(layer(node), "inplace", False)
        )

    def is_view(node: fx.Node) -> bool:
        of_shape = type(layer(node)) in _SHAPES or node.target in _SHAPE_FUNCTIONS
        return bool(node.all_input_nodes) and (
            of_shape or in_place(node) or (node.op == "call_method" and node.target in _SHAPE_METHODS)
        )

    place = {node: number for number, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if not in_place(node):
            continue
        root = node.all_input_nodes[0]
        while is_view(root):
            root = root.all_input_nodes[0]
        same = [root]
        for one in same:
            same += [user for user in one.users if user is not node and is_view(user) and user not in same]
        if any(place[user] > place[node] for one in same for user in one.users):
            raise Unsupported(f"{_name(node.target)}, which changes in place what is used again")


def _name(target: Any) -> str:
    """Of a layer as the user's network has it, or of a function."""
    if isinstance(target, str):
        return target.removeprefix("0.") if target != "0" else "the network"
    return getattr(target, "__name__", str(target))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
