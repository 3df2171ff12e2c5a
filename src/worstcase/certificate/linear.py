"""Linear bounds of a whole network: from a margin back to the inputs, over weights and activations at once.

Zhang et al. (NeurIPS 2018, arXiv 1811.00866: CROWN) bound networks so for inputs that deviate. Here the weights do.
A margin is a sum over the last layer's inputs, that is at least a sum over the inputs of the layer before, and so back
to the data. What deviates in a layer costs

- after a ReLU, where the inputs h are not negative, |A| b h: linear in h, so that nothing is lost;
- in a convolution b |sum over positions of A h|, because all positions share the weights: the absolute value is
  bounded by its chord, which is exact where its sign is certain. So each margin meets its own worst kernel.

**Floating point.** The bounds are computed in float64. What the network rounds is an error of each layer's output, at
most `slack` times the sum of the absolute products. That counts the longer of the layer's sums forth and back, and
twice, so that it covers this layer's arithmetic in float64 too. All else that is added up is taken to be wrong by
2^-32 of the sum of its absolute values, which is enough for a million terms.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worstcase.certificate.backward import (
    OWN,
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
from worstcase.certificate.in_place import name_of
from worstcase.certificate.interval import IntervalBounds, product_of
from worstcase.certificate.products import Interval, Unsupported, slack, terms
from worstcase.certificate.rules import FEW
from worstcase.certificate.tables import AVERAGES, BATCH_NORMS, DROPOUTS
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.float64 import has_float64

MEMORY = 2**25  # bytes that the widest layer may take at a time
SUMS = 8  # for a sample on average, to tighten the hidden layers
HOPELESS = 2  # a margin that is as programmed 1 and by linear bounds less than minus so many: left as it is

RELUS = {nn.ReLU, F.relu, torch.relu, "relu"}
MAX_POOLS = {nn.MaxPool2d, F.max_pool2d, torch.max_pool2d}
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
MEANS = AVERAGES | {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}
IN_ORDER = {nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS, F.dropout, torch.flatten, torch.reshape}
IN_ORDER |= {"flatten", "view", "reshape", "unflatten", "squeeze", "unsqueeze", "contiguous"}


class LinearBounds(IntervalBounds):
    """Interval bounds, and linear ones of those margins that intervals leave open; the better one counts.

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
        self._tighter: dict[fx.Node, Interval] = {}  # of a batch, for layers where linear bounds are known
        self._samples = self._open = torch.empty(0)  # those of the batch in the last run, those of them with rules
        self._rules: dict[fx.Node, tuple[Rule, list[fx.Node]]] = {}

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        self._tighter.clear()
        least = self._least(images, labels, torch.arange(len(labels), device=labels.device))
        lead = _margins(self._crossbar(images), labels).amin(1)
        sums = SUMS * len(labels)
        for layer in self._hidden_layers() if self._movable else ():
            worst = least.amin(1)
            samples = torch.nonzero((worst <= 0) & (worst > -HOPELESS * lead)).squeeze(1)
            if not len(samples):
                break
            nearest = (worst[samples] / lead[samples]).argsort(descending=True, stable=True)
            samples, made = self._tighten(layer, images, samples[nearest], sums)
            if not len(samples):
                break
            sums -= made
            least[samples] = torch.maximum(least[samples], self._least(images, labels, samples))
        return least

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if n not in self._tighter:
            return y
        low, high = (end[self._samples] for end in (self._tighter[n].low, self._tighter[n].high))
        return Interval(torch.maximum(y.low, low), torch.minimum(y.high, high), y.nonnegative)

    def _least(self, images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        """The margins of some samples of a batch, by intervals or by linear bounds."""
        self._samples, labels = samples, labels[samples]
        least = super().margins(images[samples], labels)
        if not self._movable:
            return least
        self._open = torch.nonzero(~(least > 0).all(1)).squeeze(1)
        self._rules.clear()
        found, labels = least[self._open], labels[self._open]
        rows, hardest = torch.arange(len(found), device=found.device), found.argmin(1)
        self._improve(found, labels, rows, hardest)
        rows = rows[found[rows, hardest] > 0]  # of the others the worst margin stays open
        pairs = torch.nonzero(~(found[rows] > 0))
        self._improve(found, labels, rows[pairs[:, 0]], pairs[:, 1])
        return least.index_copy(0, self._open, found)

    def _hidden_layers(self) -> list[fx.Node]:
        """The fully connected ones, but for the last, and for the first, which intervals bound exactly."""
        return [
            n
            for n in self.module.graph.nodes
            if n.op == "call_module"
            and isinstance(self.fetch_attr(str(n.target)), nn.Linear)
            and isinstance(y := self.env[n], Interval)
            and y.low.ndim == 2
            and not self.env[n.args[0]].is_point
        ]

    def _tighten(self, layer: fx.Node, images: Tensor, samples: Tensor, sums: int) -> tuple[Tensor, int]:
        """Bound a layer's outputs whose sign is unsure, for as many samples as so many sums allow.

        Returns:
            These samples, and the number of sums.
        """
        self._samples = samples
        self.run(Interval.of(self._crossbar.laid_out(images[samples])))
        y: Interval = self.env[layer]
        unsure = (y.low < 0) & (y.high > 0)
        made = 2 * unsure.sum(1).cumsum(0)
        few = made <= sums
        samples, made = samples[few], made[few]
        self._open = torch.nonzero(few).squeeze(1)
        self._rules.clear()
        size = (len(images), y.low.shape[1])
        found = Interval(y.low.new_full(size, -math.inf), y.low.new_full(size, math.inf))
        rows, outputs = torch.nonzero(unsure[few], as_tuple=True)
        unit = torch.eye(size[1], dtype=torch.double, device=rows.device)
        for part in self._parts(len(rows)):
            row, output = rows[part], outputs[part]
            found.low[samples[row], output] = _down(self._lower(layer, unit[output], row), y.low)
            found.high[samples[row], output] = -_down(self._lower(layer, -unit[output], row), y.low)
        self._tighter[layer] = found
        return samples, int(made[-1]) if len(made) else 0

    def _improve(self, least: Tensor, labels: Tensor, rows: Tensor, others: Tensor) -> None:
        """Bound the margins over some outputs anew."""
        (end,) = next(n for n in self.module.graph.nodes if n.op == "output").all_input_nodes
        unit = torch.eye(least.shape[1], dtype=torch.double, device=least.device)
        for part in self._parts(len(rows)):
            row, other = rows[part], others[part]
            found = _down(self._lower(end, unit[labels[row]] - unit[other], row), least)
            least[row, other] = torch.maximum(least[row, other], found)

    def _lower(self, node: fx.Node, coefficients: Tensor, rows: Tensor) -> Tensor:
        """The least value of sums over a part's outputs on any chip: (M,).

        Args:
            node: the part.
            coefficients: of its outputs, (M, ...).
            rows: which of the samples that are open each sum is for, (M,).
        """
        total = Sum(coefficients)
        pending = {node: coefficients}
        for n in reversed(self.module.graph.nodes):
            if n not in pending:
                continue
            if n not in self._rules:
                self._rules[n] = self._rule(n)
            rule, sources = self._rules[n]
            a = rule(pending.pop(n), rows, total)
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
        for n in self.module.graph.nodes:
            y = self.env[n] if n.op == "call_module" else None
            layer = self.fetch_attr(str(n.target)) if y is not None else None
            if isinstance(layer, nn.Conv2d):
                kernel = layer.weight.numel()
                patches = kernel // layer.out_channels * layer.groups * math.prod(self._interval(n).low.shape[2:])
                widest = max(widest, 4 * patches + 6 * kernel)
            elif isinstance(y, Interval):
                widest = max(widest, 8 * math.prod(y.low.shape[1:]))
        return max(1, MEMORY // (8 * widest))

    # ---- which rule a part of the network has

    def _interval(self, node: Any) -> Interval:
        """The node's interval of the samples that are open, in float64."""
        x = self.env[node]
        low = x.low[self._open].double()
        return Interval(low, low if x.is_point else x.high[self._open].double(), x.nonnegative)

    def _rule(self, n: fx.Node) -> tuple[Rule, list[fx.Node]]:
        y = self.env[n]
        if isinstance(y, Interval) and y.is_point:
            return Fixed(self._interval(n).low), []
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        kind = n.target if module is None else type(module)
        source: Any = n.args[0]
        if kind in ADDITIONS and set(n.kwargs) <= {"alpha"} and n.kwargs.get("alpha", 1) == 1:
            return self._sum(n)
        x = self._interval(source)
        rule: Rule
        if kind in (nn.Linear, nn.Conv2d) and module is not None:
            rule = self._product(n, module, x)
        elif kind in BATCH_NORMS and module is not None:
            rule = self._batch_norm(module, x)
        elif kind in RELUS:
            rule = ReLU(x)
        elif kind in MAX_POOLS:
            rule = _max_pool(x, module, *n.args[1:], **n.kwargs)
        elif kind in MEANS:
            rule = self._mean(n, module, x)
        elif kind in IN_ORDER and len(y.low) == len(self.env[source].low):
            rule = Reshaped(x.low.shape[1:])
        else:
            raise Unsupported(f"{name_of(n.target)} by linear bounds")
        ends = kind is nn.Conv2d and x.is_point  # it adds all up itself
        return rule, [] if ends else [source]

    def _product(self, n: fx.Node, layer: nn.Module, x: Interval) -> Rule:
        weight, bias = (None if t is None else Interval.of(self._of(t)) for t in (layer.weight, layer.bias))
        assert weight is not None
        count = max(terms(weight.low), terms(weight.low, transposed=True))
        rounding = slack(count, weight.low)
        weight, bias = (t and Interval(t.low.double(), t.high.double()) for t in (weight, bias))
        assert weight is not None
        error = rounding * product_of(layer)(x.magnitude, weight.magnitude, bias and bias.magnitude)
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
        error = rounding * (
            x.magnitude * scale.abs().reshape(shape) + (move.abs() + shift.abs()).reshape(shape)
        )
        return Rounded(Scaled(scale.reshape(shape), (shift - move).reshape(shape)), error)

    def _mean(self, n: fx.Node, module: nn.Module | None, x: Interval) -> Rule:
        def mean(t: Tensor) -> Tensor:
            if module is not None:
                return module(t)
            if n.op == "call_method":
                return getattr(t, str(n.target))(*n.args[1:], **n.kwargs)
            return n.target(t, *n.args[1:], **n.kwargs)  # type: ignore[operator]

        count = max(x.low.numel() // self.env[n].low.numel(), math.prod(x.low.shape[2:]))
        return Rounded(Map(mean, x.low.shape[1:]), slack(count, self.env[n].low) * mean(x.magnitude))

    def _sum(self, n: fx.Node) -> tuple[Rule, list[fx.Node]]:
        values = [self.env[t] if isinstance(t, fx.Node) else t for t in n.args]
        constants = [v for v in values if not isinstance(v, Interval)]
        sources = [t for t, v in zip(n.args, values, strict=True) if isinstance(v, Interval)]
        y = self._interval(n)
        if any(self.env[t].low.shape != self.env[n].low.shape for t in sources):
            raise Unsupported(f"{name_of(n.target)} of different shapes by linear bounds")
        return Rounded(Plus(constants), slack(1, self.env[n].low) * y.magnitude), sources


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


def _down(x: Tensor, like: Tensor) -> Tensor:
    """The same or less in another dtype."""
    return torch.nextafter(x.to(like.dtype), like.new_tensor(-math.inf))


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    column = labels[:, None]
    return (logits.gather(1, column) - logits).scatter(1, column, math.inf)
