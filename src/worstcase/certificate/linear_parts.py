"""Which linear rule each part of a network's graph has."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worstcase.certificate.in_place import name_of
from worstcase.certificate.interval import IntervalBounds, product_of
from worstcase.certificate.linear_rules import (
    Bent,
    Fixed,
    Linear,
    Map,
    MaxPool,
    ReLU,
    Reshaped,
    Rounded,
    Rule,
    Scaled,
    in_a_row,
    shared,
    two_dimensions,
)
from worstcase.certificate.products import Interval, Unsupported, slack, terms
from worstcase.certificate.rules import FEW, monotone, of_type
from worstcase.certificate.tables import (
    AVERAGES,
    BATCH_NORMS,
    DROPOUTS,
    IN_PLACE,
    MATRIX_PRODUCTS,
    PADS,
    SHAPE_FUNCTIONS,
    SHAPE_METHODS,
    SHAPES,
)
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.float64 import has_float64

RELUS = {nn.ReLU, F.relu, torch.relu, "relu"}
BENT = {nn.LeakyReLU, F.leaky_relu, operator.abs, torch.abs, "abs"}
MAX_POOLS = dict.fromkeys([nn.MaxPool1d, F.max_pool1d, torch.max_pool1d], 1)  # and over how many dimensions
MAX_POOLS |= dict.fromkeys([nn.MaxPool2d, F.max_pool2d, torch.max_pool2d], 2)
ADAPTIVE = {nn.AdaptiveMaxPool1d: 1, F.adaptive_max_pool1d: 1, nn.AdaptiveMaxPool2d: 2, F.adaptive_max_pool2d: 2}
MAX_POOLS |= ADAPTIVE
SUBTRACTIONS = {operator.sub, torch.sub, "sub"}
SUMS = {operator.add, torch.add, "add", *SUBTRACTIONS}
JOINS = {torch.cat, torch.concat, torch.stack}
MEANS = AVERAGES | {F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean, "mean"}
RESIZED = {nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate}
MEANS |= {torch.sum, "sum", *RESIZED}
IN_ORDER = {nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS, F.dropout, torch.flatten, torch.reshape}
IN_ORDER |= {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "contiguous", "detach", "clone"}
IN_ORDER |= {"float", "double"}
PLACES = {*SHAPES, *SHAPE_METHODS, *SHAPE_FUNCTIONS, *PADS, *JOINS}
BY_NUMBERS = {operator.mul, torch.mul, "mul", operator.truediv, torch.div, "div", operator.neg, torch.neg, "neg"}

Source = tuple[fx.Node, Callable[[Tensor], Tensor]]
"""Where a part's coefficients go back to, and what becomes of them on the way."""


class LinearParts(IntervalBounds):
    """Interval bounds of a batch that are kept, and the linear rules of some of its samples.

    Raises:
        Unsupported: see `IntervalBounds`; a part of the network may have an interval rule only.
    """

    def __init__(self, crossbar: Crossbar) -> None:
        super().__init__(crossbar)
        if self._quantised:
            raise Unsupported("quantised outputs, of which intervals alone are known")
        if not has_float64(next(crossbar.parameters()).device):
            raise Unsupported("a device without float64, of which intervals alone are known")
        self.garbage_collect_values = False  # the intervals of the last run are kept
        self._nodes = list(self.graph.nodes)
        self._of_data: set[fx.Node] = set()  # what depends on the samples
        for n in self._nodes:
            if n.op == "placeholder" or self._of_data.intersection(n.all_input_nodes):
                self._of_data.add(n)
        self._open = torch.empty(0)  # the samples of the last run that sums are bounded for
        self._rules: dict[fx.Node, tuple[Rule, list[Source]]] = {}

    def _interval(self, node: Any) -> Interval:
        """The node's interval of the samples that are open, in float64."""
        x = self.env[node]
        low = x.low[self._open]
        return _in_float64(Interval(low, low if x.is_point else x.high[self._open], x.nonnegative))

    def _rule(self, n: fx.Node) -> tuple[Rule, list[Source]]:
        y = self.env[n]
        if torch.is_tensor(y):
            return Fixed(y[self._open].double()), []
        if isinstance(y, Interval) and y.is_point:
            return Fixed(self._interval(n).low), []
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        kind: Any = IN_PLACE.get(n.target, n.target) if module is None else type(module)
        kind = kind.rstrip("_") if n.op == "call_method" else kind
        of_data = [t for t in n.all_input_nodes if t in self._of_data]
        if kind in JOINS and not isinstance(n.args[0], fx.Node):
            return self._joined(n, kind)
        if kind in SUMS and sum(isinstance(self.env[t], Interval | Tensor) for t in of_data) == 2:
            return self._sum(n, kind)
        sources = [t for t in of_data if list(of_type(Interval, self.env[t]))]
        if len(sources) != 1:
            raise Unsupported(f"{name_of(n.target)} of {len(sources)} inputs by linear bounds")
        source: Any = sources[0]
        while isinstance(self.env[source], tuple):  # such as of chunk
            if source.target not in PLACES:
                raise Unsupported(f"{self._name(source)} by linear bounds")
            source = source.args[0]
        x, (product, weight, bias) = self._interval(source), self._layer(n)
        rule: Rule
        if product is not None:
            rule = self._product(n, product, x, weight, bias)
        elif kind in BATCH_NORMS and module is not None:
            rule = self._batch_norm(module, x)
        elif kind in RELUS:
            rule = ReLU(x)
        elif kind in BENT:
            rule = Rounded(Bent(x, _slope(n, module)), slack(FEW, y.low) * self._interval(n).magnitude)
        elif kind in MAX_POOLS:
            rule = self._max_pool(n, kind, module, x)
        elif kind in IN_ORDER and y.low.dtype == self.env[source].low.dtype:
            rule = Reshaped(x.low.shape[1:])
        elif kind in PLACES:
            rule = self._map(n, source, x)
        elif kind in MEANS:
            rule = self._mean(n, kind, source, x)
        elif kind in BY_NUMBERS | SUMS:
            rule = self._map(n, source, x)
            size = self._interval(n).magnitude + rule.f(0 * x.low).abs()
            rule = Rounded(rule, slack(FEW, y.low) * size)
        else:
            raise Unsupported(f"{self._name(n)} by linear bounds")
        return rule, [(source, _same)]

    def _name(self, n: fx.Node) -> str:
        layer = f" ({type(self.fetch_attr(str(n.target))).__name__})" if n.op == "call_module" else ""
        return f"{name_of(n.target)}{layer}"

    def _layer(self, n: fx.Node) -> tuple[Any, Any, Any]:
        """The linear layer or convolution that does what a node does, its weight and bias; else None of each."""
        if n.op == "call_module":
            layer = self.fetch_attr(str(n.target))
            if type(layer) not in (nn.Linear, nn.Conv1d, nn.Conv2d):
                return None, None, None
            weight, bias = self._of(layer.weight), self._of(layer.bias)
        elif n.target in (F.linear, F.conv1d, F.conv2d, *MATRIX_PRODUCTS) and self._of_data.isdisjoint(
            n.all_input_nodes[1:]
        ):
            args, options = fx.node.map_arg((n.args[1:], n.kwargs), lambda node: self.env[node])
            make = _convolution if n.target in (F.conv1d, F.conv2d) else _linear
            layer, weight, bias = make(*args, **options)
            if n.target in MATRIX_PRODUCTS:
                weight = monotone(Tensor.t, Interval.of(weight))
        else:
            return None, None, None
        return layer, Interval.of(weight), None if bias is None else Interval.of(bias)

    def _product(self, n: fx.Node, layer: Any, x: Interval, weight: Interval, bias: Interval | None) -> Rule:
        bias = bias and _in_float64(bias)
        count = max(terms(weight.low), terms(weight.low, transposed=True))
        rounding = slack(count, weight.low)
        weight = _in_float64(weight)
        error = rounding * product_of(layer)(
            x.magnitude, weight.magnitude, None if bias is None else bias.magnitude
        )
        alone = isinstance(layer, nn.Linear) and x.low.ndim == 2
        return Rounded((Linear(x, weight, bias) if alone else shared(layer, x, weight, bias)), error)

    def _batch_norm(self, norm: Any, x: Interval) -> Rule:
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.double()
        move = norm.running_mean.double() * scale
        shift = norm.bias.double() if norm.affine else torch.zeros_like(scale)
        shape = (-1, *[1] * (x.low.ndim - 2))
        rounding = slack(FEW, norm.running_mean)
        error = rounding * (x.magnitude * scale.abs().reshape(shape) + (move.abs() + shift.abs()).reshape(shape))
        return Rounded(Scaled(scale.reshape(shape), (shift - move).reshape(shape)), error)

    def _max_pool(self, n: fx.Node, kind: Any, module: Any, x: Interval) -> Rule:
        if x.low.ndim != MAX_POOLS[kind] + 2:
            raise Unsupported(f"{self._name(n)} of images without channels by linear bounds")
        window: Any = fx.node.map_arg((n.args[1:], n.kwargs), lambda node: self.env[node])
        if kind in ADAPTIVE:
            sizes = list(zip(x.low.shape[2:], self.env[n].low.shape[2:], strict=True))
            if any(inputs % outputs for inputs, outputs in sizes):
                raise Unsupported(f"{self._name(n)} of windows that overlap by linear bounds")
            module, window = None, ([[inputs // outputs for inputs, outputs in sizes]], {})
        return _of_windows(x, module, *window[0], **window[1])

    def _mean(self, n: fx.Node, kind: Any, source: fx.Node, x: Interval) -> Rule:
        rule, y, size = self._map(n, source, x), self.env[n].low, x.magnitude
        count = max(math.prod(x.low.shape[1:]) // math.prod(y.shape[1:]), math.prod(x.low.shape[2:]))
        if kind in RESIZED:  # the places between points are rounded too, and may reach the next point
            count, size = 4 * count, size.amax(tuple(range(2, size.ndim)), keepdim=True).expand_as(size)
        return Rounded(rule, slack(count, y) * rule.f(size))

    def _map(self, n: fx.Node, source: fx.Node, x: Interval) -> Map:
        """The rule of a part that maps each sample by itself, linearly but for a constant."""

        def of(part: fx.Node, t: Tensor) -> Any:
            def value(node: fx.Node) -> Any:
                if node is source:
                    return t
                taken_apart = next(of_type(Interval, self.env[node]), None) or source in node.all_input_nodes
                if isinstance(self.env[node], tuple) and taken_apart:
                    return of(node, t)
                if isinstance(self.env[node], Interval) or (
                    node in self._of_data and torch.is_tensor(self.env[node])
                ):
                    raise Unsupported(f"{name_of(n.target)} with {name_of(node.target)} by linear bounds")
                return self.env[node]

            args, options = fx.node.map_arg((part.args, part.kwargs), value)
            if part.op == "call_module":
                return self.fetch_attr(str(part.target))(*args)
            if part.op == "call_method":
                return getattr(args[0], str(part.target).rstrip("_"))(*args[1:], **options)
            return IN_PLACE.get(part.target, part.target)(*args, **options)

        f, size = partial(of, n), x.low.shape[1:]
        some = torch.arange(3.0 * size.numel(), dtype=torch.double, device=x.low.device).sin().reshape(3, *size)
        y, back, *_ = torch.func.vjp(f, some)
        a = torch.arange(float(y.numel()), dtype=torch.double, device=y.device).cos().reshape(y.shape)
        moved, told = a * (y - f(0 * some)), some * back(a)[0]
        if len(y) != 3 or not torch.allclose(moved.flatten(1).sum(1), told.flatten(1).sum(1)):
            raise Unsupported(f"{name_of(n.target)}, which mixes samples or is not linear, by linear bounds")
        return Map(f, size)

    def _sum(self, n: fx.Node, kind: Any) -> tuple[Rule, list[Source]]:
        if set(n.kwargs) - {"alpha"} or n.kwargs.get("alpha", 1) != 1:
            raise Unsupported(f"{name_of(n.target)} with {', '.join(n.kwargs)} by linear bounds")
        terms: Any = n.args
        y, shapes = self._interval(n), [Interval.of(self.env[t]).low.shape for t in terms]
        if any((len(shape), shape[:1]) != (y.low.ndim, self.env[n].low.shape[:1]) for shape in shapes):
            raise Unsupported(f"{name_of(n.target)} of different shapes by linear bounds")
        rule = Rounded(Reshaped(y.low.shape[1:]), slack(1, self.env[n].low) * y.magnitude)
        backs = [partial(_of_term, size=shape[1:]) for shape in shapes]
        if kind in SUBTRACTIONS:
            backs[1] = partial(_of_term, size=shapes[1][1:], negative=True)
        return rule, list(zip(terms, backs, strict=True))

    def _joined(self, n: fx.Node, kind: Any) -> tuple[Rule, list[Source]]:
        parts: Any = n.args[0]
        dim: Any = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim", 0)
        if dim % self.env[n].low.ndim == 0:
            raise Unsupported(f"{name_of(n.target)}, which mixes samples, by linear bounds")
        sources: list[Source] = []
        start = 0
        for part in parts:
            if isinstance(self.env[part], Interval) and part not in self._of_data:
                raise Unsupported(f"{name_of(n.target)} with {name_of(part.target)} by linear bounds")
            length = 1 if kind is torch.stack else Interval.of(self.env[part]).low.shape[dim]
            back = partial(torch.narrow, dim=dim, start=start, length=length)
            if kind is torch.stack:
                back = partial(torch.select, dim=dim, index=start)
            sources.append((part, back))
            start += length
        return Reshaped(self.env[n].low.shape[1:]), sources


def _same(a: Tensor) -> Tensor:
    return a


def _of_term(a: Tensor, size: torch.Size, negative: bool = False) -> Tensor:
    """The coefficients of a term that may have been broadcast."""
    a = a.sum_to_size(len(a), *size)
    return -a if negative else a


def _linear(weight: Any, bias: Any = None) -> tuple[nn.Module, Any, Any]:
    """A layer without numbers of its own, and what it computes with."""
    return nn.Linear(1, 1, bias is not None, device="meta"), weight, bias


def _convolution(
    weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[nn.Module, Any, Any]:
    """The same of a convolution of one or two dimensions."""
    outputs, inputs, *kernel = Interval.of(weight).low.shape
    kind: Any = nn.Conv1d if len(kernel) == 1 else nn.Conv2d
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = kind(inputs * groups, outputs, tuple(kernel), bias=bias is not None, device="meta", **options)
    return layer, weight, bias


def _slope(n: fx.Node, module: Any) -> float:
    """Of a leaky ReLU or an absolute value, below 0."""
    if module is not None:
        return float(module.negative_slope)
    if n.target is not F.leaky_relu:
        return -1.0
    given: Any = dict(enumerate(n.args)).get(1, n.kwargs.get("negative_slope", 0.01))
    return float(given)


def _of_windows(
    x: Interval,
    module: Any,
    kernel_size: Any = None,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **options: Any,
) -> Rule:
    if module is not None:
        kernel_size, stride, padding = module.kernel_size, module.stride, module.padding
        dilation, ceil_mode = module.dilation, module.ceil_mode
    window = {
        "kernel_size": kernel_size,
        "stride": stride or kernel_size,
        "padding": padding,
        "dilation": dilation,
    }
    if x.low.ndim == 4:
        return MaxPool(x, ceil_mode=ceil_mode, **window)
    x = monotone(lambda t: t[:, :, None], x)
    return in_a_row(MaxPool(x, ceil_mode=ceil_mode, **two_dimensions(window)))


def _in_float64(x: Interval) -> Interval:
    low = x.low.double()
    return Interval(low, low if x.is_point else x.high.double(), x.nonnegative)
