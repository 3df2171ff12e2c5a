"""Linear bounds of a whole network: from a sum back to the data, over weights and activations at once.

Zhang et al. (NeurIPS 2018, arXiv 1811.00866: CROWN) bound networks so for inputs that deviate; here weights do. A
sum over a layer's outputs is at least a sum over its inputs, and so back to the data. What deviates in a layer
costs

- after a ReLU, where the inputs h are not negative, |A| b h: linear in h, so that nothing is lost;
- in a convolution b |sum over positions of A h|, because all positions share the weights: the absolute value is
  bounded by its chord, which is exact where its sign is certain. So each sum meets its own worst kernel.

**Floating point.** The bounds are computed in float64. What the network rounds is an error of each layer's output,
at most `slack` times the sum of the absolute products. That counts the longer of the layer's sums forth and back,
and twice, so that it covers this layer's arithmetic in float64 too. All else that is added up is taken to be wrong
by 2^-32 of the sum of its absolute values, which is enough for a million terms.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worstcase.certificate.in_place import name_of
from worstcase.certificate.interval import IntervalBounds, product_of
from worstcase.certificate.linear_rules import (
    Convolution,
    Fixed,
    Linear,
    Map,
    MaxPool,
    Plus,
    ReLU,
    Reshaped,
    Rounded,
    Rule,
    Scaled,
    Sum,
)
from worstcase.certificate.products import Interval, Unsupported, slack, terms
from worstcase.certificate.rules import FEW, monotone
from worstcase.certificate.tables import AVERAGES, BATCH_NORMS, DROPOUTS, MATRIX_PRODUCTS
from worstcase.certificate.tracing import first_line
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.float64 import has_float64

MEMORY = 2**25  # bytes that the widest layer may take at a time

RELUS = {nn.ReLU, F.relu, torch.relu, "relu"}
MAX_POOLS = {nn.MaxPool2d, F.max_pool2d, torch.max_pool2d}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
MEANS = AVERAGES | {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}
IN_ORDER = {nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS, F.dropout, torch.flatten, torch.reshape}
IN_ORDER |= {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "contiguous"}


class BackwardBounds(IntervalBounds):
    """Interval bounds of a batch that are kept, and linear bounds of sums over any part's outputs.

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
        self._rules: dict[fx.Node, tuple[Rule, list[fx.Node]]] = {}

    def run(self, *inputs: Any, **options: Any) -> Any:
        self._samples_now = len(inputs[0].low)
        return super().run(*inputs, **options)

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if isinstance(y, Interval) and n in self._of_data and y.low.shape[:1] != (self._samples_now,):
            raise Unsupported(f"{name_of(n.target)}, after which samples do not come first, by linear bounds")
        return y

    def _opened(self, samples: Tensor) -> None:
        """Bound sums for these samples of the last run from now on."""
        self._open = samples
        self._rules.clear()

    def _lower(self, node: fx.Node, coefficients: Tensor, rows: Tensor) -> Tensor:
        """The least value of sums over a part's outputs on any chip: (M,).

        Args:
            node: the part.
            coefficients: of its outputs, (M, ...).
            rows: which of the samples that are open each sum is for, (M,).
        """
        total = Sum(coefficients)
        pending = {node: coefficients}
        for n in reversed(self._nodes):
            if n not in pending:
                continue
            try:
                if n not in self._rules:
                    self._rules[n] = self._rule(n)
                rule, sources = self._rules[n]
                a = rule(pending.pop(n), rows, total)
            except Unsupported:
                raise
            except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
                raise Unsupported(f"{name_of(n.target)} by linear bounds: {first_line(error)}") from error
            for source in sources:
                pending[source] = pending[source] + a if source in pending else a
        return total.bound

    def _parts(self, sums: int) -> tuple[Tensor, ...]:
        """The numbers of so many sums in parts that fit into the memory."""
        at_once = self._at_once()
        return torch.arange(sums, device=self._open.device).split(at_once) if sums else ()

    def _at_once(self) -> int:
        """How many sums fit into the memory."""
        widest = 1
        for n in self._of_data:
            y, (layer, _, _) = self.env[n], self._layer(n)
            if isinstance(layer, nn.Conv2d):
                kernel = layer.weight.numel()
                patches = kernel // layer.out_channels * layer.groups * math.prod(self._interval(n).low.shape[2:])
                widest = max(widest, 4 * patches + 6 * kernel)
            elif n.op == "call_module" and isinstance(y, Interval):
                widest = max(widest, 8 * math.prod(y.low.shape[1:]))
        return max(1, MEMORY // (8 * widest))

    # ---- which rule a part of the network has

    def _interval(self, node: Any) -> Interval:
        """The node's interval of the samples that are open, in float64."""
        x = self.env[node]
        low = x.low[self._open]
        return _in_float64(Interval(low, low if x.is_point else x.high[self._open], x.nonnegative))

    def _rule(self, n: fx.Node) -> tuple[Rule, list[fx.Node]]:
        y = self.env[n]
        if isinstance(y, Interval) and y.is_point:
            return Fixed(self._interval(n).low), []
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        kind = n.target if module is None else type(module)
        source: Any = n.args[0]
        if kind in ADDITIONS and set(n.kwargs) <= {"alpha"} and n.kwargs.get("alpha", 1) == 1:
            return self._sum(n)
        if source not in self._of_data:
            raise Unsupported(f"{name_of(n.target)} of what comes from no sample by linear bounds")
        x, (product, weight, bias) = self._interval(source), self._layer(n)
        rule: Rule
        if product is not None:
            rule = self._product(n, product, x, weight, bias)
        elif kind in BATCH_NORMS and module is not None:
            rule = self._batch_norm(module, x)
        elif kind in RELUS:
            rule = ReLU(x)
        elif kind in MAX_POOLS:
            rule = _max_pool(x, module, *n.args[1:], **n.kwargs)  # type: ignore[arg-type]
        elif kind in MEANS:
            rule = self._mean(n, module, x)
        elif kind in IN_ORDER and len(y.low) == len(self.env[source].low):
            rule = Reshaped(x.low.shape[1:])
        else:
            layer = "" if module is None else f" ({type(module).__name__})"
            raise Unsupported(f"{name_of(n.target)}{layer} by linear bounds")
        ends = isinstance(product, nn.Conv2d) and x.is_point  # it adds all up itself
        return rule, [] if ends else [source]

    def _layer(self, n: fx.Node) -> tuple[Any, Any, Any]:
        """The linear layer or convolution that does what a node does, its weight and bias; else None of each."""
        if n.op == "call_module":
            layer = self.fetch_attr(str(n.target))
            if type(layer) not in (nn.Linear, nn.Conv2d):
                return None, None, None
            weight, bias = self._of(layer.weight), self._of(layer.bias)
        elif n.target in (F.linear, F.conv2d, *MATRIX_PRODUCTS) and self._of_data.isdisjoint(
            n.all_input_nodes[1:]
        ):
            args, options = fx.node.map_arg((n.args[1:], n.kwargs), lambda node: self.env[node])
            make = _convolution if n.target is F.conv2d else _linear
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
        if isinstance(layer, nn.Conv2d):
            return Rounded(Convolution(layer, x, weight, bias), error)
        if x.low.ndim != 2:
            raise Unsupported(f"{name_of(n.target)} at several positions by linear bounds")
        return Rounded(Linear(x, weight, bias), error)

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

    def _mean(self, n: fx.Node, module: nn.Module | None, x: Interval) -> Rule:
        def mean(t: Tensor) -> Tensor:
            if module is not None:
                return module(t)
            if n.op == "call_method":
                return getattr(t, str(n.target))(*n.args[1:], **n.kwargs)
            return n.target(t, *n.args[1:], **n.kwargs)  # type: ignore[operator]

        count = math.prod(x.low.shape[1:]) // math.prod(self.env[n].low.shape[1:])
        count = max(count, math.prod(x.low.shape[2:]))
        return Rounded(Map(mean, x.low.shape[1:]), slack(count, self.env[n].low) * mean(x.magnitude))

    def _sum(self, n: fx.Node) -> tuple[Rule, list[fx.Node]]:
        values = [self.env[t] if isinstance(t, fx.Node) else t for t in n.args]
        constants = [v for v in values if not isinstance(v, Interval)]
        sources = [t for t in n.args if isinstance(t, fx.Node) and isinstance(self.env[t], Interval)]
        y = self._interval(n)
        if any(self.env[t].low.shape != self.env[n].low.shape for t in sources):
            raise Unsupported(f"{name_of(n.target)} of different shapes by linear bounds")
        return Rounded(Plus(constants), slack(1, self.env[n].low) * y.magnitude), sources


def _linear(weight: Any, bias: Any = None) -> tuple[nn.Module, Any, Any]:
    """A layer without numbers of its own, and what it computes with."""
    return nn.Linear(1, 1, bias is not None, device="meta"), weight, bias


def _convolution(
    weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[nn.Module, Any, Any]:
    """The same of a convolution of two dimensions."""
    outputs, inputs, *kernel = Interval.of(weight).low.shape
    size: Any = tuple(kernel)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = nn.Conv2d(inputs * groups, outputs, size, bias=bias is not None, device="meta", **options)
    return layer, weight, bias


def _max_pool(
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
    if ceil_mode or x.low.ndim != 4:
        raise Unsupported("such a max pooling by linear bounds")
    return MaxPool(x, kernel_size, stride or kernel_size, padding, dilation)


def _in_float64(x: Interval) -> Interval:
    low = x.low.double()
    return Interval(low, low if x.is_point else x.high.double(), x.nonnegative)
