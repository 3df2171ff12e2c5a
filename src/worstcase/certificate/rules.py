"""Interval bounds of each layer: if what goes in lies between `low` and `high`, so does what comes out.

**Floating point.** The bounds hold for what the network computes in its own float32 or float64, not only for exact
numbers. Where an operation rounds monotonically (ReLU, pooling by maximum, a sum of two tensors, quantisation),
the ends of the interval go through the same operation, and nothing has to be added. A sum of n products that is
computed in any order is the exact sum for weights that are off by at most gamma_n |W|, where gamma_n = n u /
(1 - n u) and u is the unit roundoff (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, section 3.1).
So rounding is one more deviation of each weight: before a weight box meets its inputs it is widened by `slack`
times |W|, which covers the network's sum and the bound's own. Not covered: overflow, underflow, and convolutions
that are no sums of products (Winograd, FFT), which cuDNN may choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 8  # roundings of an elementwise formula, at most


class Unsupported(NotImplementedError):  # noqa: N818 (it says what it is)
    """A part of the network has no rule; the message names it."""


@dataclass(frozen=True, eq=False)
class Interval:
    """All tensors between two, both included.

    Example:
        >>> x = Interval(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 3.0]))
        >>> monotone(F.relu, x).low, monotone(F.relu, x).high
        (tensor([0., 2.]), tensor([0.5000, 3.0000]))
    """

    low: Tensor
    high: Tensor
    nonnegative: bool = False
    """Whatever the data: it comes from a ReLU or the like."""

    @property
    def is_point(self) -> bool:
        return self.low is self.high

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value."""
        return self.high if self.nonnegative else torch.maximum(self.low.abs(), self.high.abs())

    @classmethod
    def of(cls, x: Interval | Tensor) -> Interval:
        return x if isinstance(x, Interval) else cls(x, x)

    def widened(self, by: Tensor) -> Interval:
        low = self.low - by
        return Interval(low.clamp_min(0) if self.nonnegative else low, self.high + by, self.nonnegative)

    def around(self) -> tuple[Tensor, Tensor]:
        """A centre and a radius that hold the interval, also after rounding."""
        centre = self.low / 2 + self.high / 2
        radius = torch.maximum(self.high - centre, centre - self.low)
        return centre, radius * (1 + 4 * torch.finfo(radius.dtype).eps)


def slack(terms: int, like: Tensor) -> float:
    """By how much of their absolute value rounding may move the weights of a sum of so many products.

    It is gamma_k with k = 2 terms + 16: once for the network, once for the bound itself. Where float32 factors may
    be rounded to TF32, as by default in convolutions on a GPU, 2^-8 more. Infinite if k u is 1 or more.
    """
    ku = (2 * terms + 16) * torch.finfo(like.dtype).eps / 2
    by_default = like.is_cuda and torch.backends.cudnn.allow_tf32
    tf32 = like.dtype == torch.float32 and (by_default or torch.get_float32_matmul_precision() != "highest")
    return ku / (1 - ku) + (2**-8 if tf32 else 0) if ku < 1 else math.inf


class Weight:
    """The box of a weight and a bias, widened for rounding, in the parts that products need; see `affine`."""

    def __init__(self, weight: Interval, bias: Interval | None, terms: int) -> None:
        self.slack = slack(terms, weight.low)
        self.box = weight.widened(self.slack * weight.magnitude)
        self.bias = bias and bias.widened(self.slack * bias.magnitude)

    @cached_property
    def signed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The parts of `low` above and below 0, and those of `high`."""
        low, high = self.box.low, self.box.high
        return low.clamp_min(0), (-low).clamp_min(0), high.clamp_min(0), (-high).clamp_min(0)

    @cached_property
    def around(self) -> tuple[Tensor, Tensor, Tensor]:
        """The centre, its absolute value with the radius, and the radius."""
        centre, radius = self.box.around()
        radius = radius * (1 + self.slack)
        return centre, (centre.abs() + radius) * (1 + self.slack), radius

    @cached_property
    def bias_around(self) -> tuple[Tensor | None, Tensor | None]:
        return self.bias.around() if self.bias else (None, None)

    @cached_property
    def no_bias(self) -> Tensor | None:
        return torch.zeros_like(self.bias.low) if self.bias else None


# ---- layers with weights

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Of inputs, a weight and a bias: what a linear layer or a convolution computes."""


def affine(product: Product, x: Interval, weight: Weight) -> Interval:
    """W x + b for every W and b in their boxes and every x in its interval.

    Inputs that are not negative, as after a ReLU, are at the end that a weight's sign chooses: that is exact, and
    takes four products. Otherwise the interval is c +- r, and |W x - C c| <= (|C| + R) r + R |c| for W = C +- R:
    three products, and two if r = 0.
    """
    if x.nonnegative and not x.is_point:
        low_positive, low_negative, high_positive, high_negative = weight.signed
        bias_low, bias_high = (weight.bias.low, weight.bias.high) if weight.bias else (None, None)
        low = product(x.low, low_positive, bias_low) - product(x.high, low_negative, weight.no_bias)
        high = product(x.high, high_positive, bias_high) - product(x.low, high_negative, weight.no_bias)
        return Interval(low, high)
    centre, both, radius = weight.around
    bias, bias_radius = weight.bias_around
    if x.is_point:
        middle, spread = product(x.low, centre, bias), product(x.low.abs(), radius, bias_radius)
    else:
        c, r = x.around()
        middle = product(c, centre, bias)
        spread = product(c.abs(), radius, bias_radius) + product(r, both, weight.no_bias)
    return Interval(middle - spread, middle + spread)


def margins(x: Interval, weight: Weight, labels: Tensor) -> Tensor:
    """How far a last linear layer keeps the label's output above each other, at least: (N, classes).

    All outputs are of the same x, so that (w_label - w_other) x is bounded at once; the rows of W deviate
    independently. The label's own column is infinite.
    """
    found = x.low.new_full((len(labels), len(weight.box.low)), math.inf)
    for label in labels.unique():
        rows = labels == label
        if x.nonnegative and not x.is_point:
            least = weight.box.low[label] - weight.box.high
            margin = F.linear(x.low[rows], least.clamp_min(0)) - F.linear(x.high[rows], (-least).clamp_min(0))
        else:
            centre, _, radius = weight.around
            c, r = (x.low, None) if x.is_point else x.around()
            difference, spread = centre[label] - centre, radius[label] + radius
            margin = F.linear(c[rows], difference) - F.linear(c[rows].abs(), spread)
            if r is not None:
                margin -= F.linear(r[rows], (difference.abs() + spread) * (1 + weight.slack))
        if weight.bias:
            margin += weight.bias.low[label] - weight.bias.high
        margin[:, label] = math.inf
        found[rows] = margin
    return found


def terms(weight: Tensor, *, transposed: bool = False) -> int:
    """Products in one output, at most."""
    return weight.numel() // max(1, weight.shape[1 if transposed else 0])


# ---- norms, whose parameters are exact


def batch_norm(x: Interval, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Interval:
    """Of channels with fixed statistics, in eval mode."""
    mean, var, scale, shift = (t.reshape(-1, *[1] * (x.low.ndim - 2)) for t in (mean, var, scale, shift))
    scale = scale / torch.sqrt(var + eps)
    ends = Interval(x.low * scale, x.high * scale)
    ends = Interval(torch.minimum(ends.low, ends.high), torch.maximum(ends.low, ends.high))
    rounding = slack(FEW, x.low) * (ends.magnitude + (mean * scale).abs() + shift.abs())
    move = shift - mean * scale
    return Interval(ends.low + move, ends.high + move).widened(rounding)


def normalised(x: Interval, eps: float) -> Interval:
    """(x - mean) / sqrt(variance + eps) over the last dimension."""
    n = x.low.shape[-1]
    rounding = slack(n, x.low) * (x.magnitude + x.magnitude.mean(-1, keepdim=True))
    width = (x.high - x.low) / n  # x is itself a part of the mean
    low = x.low - x.high.mean(-1, keepdim=True) + width - rounding
    high = x.high - x.low.mean(-1, keepdim=True) - width + rounding
    rounding = 2 * slack(n, low) * x.magnitude.square().mean(-1, keepdim=True)
    nearest = torch.maximum(low.clamp_min(0), (-high).clamp_min(0)).square().mean(-1, keepdim=True)
    farthest = torch.maximum(-low, high).square().mean(-1, keepdim=True)
    least, most = ((nearest - rounding).clamp_min(0) + eps).sqrt(), (farthest + rounding + eps).sqrt()
    y = Interval(low / torch.where(low < 0, least, most), high / torch.where(high > 0, least, most))
    return y.widened(slack(n, low) * y.magnitude)


def scaled(x: Interval, scale: Tensor | None, shift: Tensor | None) -> Interval:
    """x scale + shift, elementwise, of exact numbers."""
    if scale is not None:
        x = corners(torch.mul, x, Interval.of(scale))
    if shift is not None:
        x = monotone(torch.add, x, shift).widened(slack(FEW, x.low) * (x.magnitude + shift.abs()))
    return x


# ---- layers without


def monotone(f: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A function that rises with each interval and rounds monotonically: its ends are those of its inputs.

    What it makes of intervals that are not negative, and of no other tensor, is taken for not negative.
    """
    found = list(of_type(Interval, args))
    nonnegative = all(x.nonnegative for x in found) and not list(of_type(Tensor, args))
    low = f(*each(args, lambda x: x.low), **options)
    high = low if all(x.is_point for x in found) else f(*each(args, lambda x: x.high), **options)
    if isinstance(low, Tensor):
        return Interval(low, high, nonnegative)
    return tuple(Interval(a, b, nonnegative) for a, b in zip(low, high, strict=True))  # such as of chunk


def signless(f: Callable[..., Any], *args: Any, **options: Any) -> Interval:
    """The same of a function that may give what is negative, such as a sum with an exact number."""
    found = monotone(f, *args, **options)
    return Interval(found.low, found.high)


def positive(f: Callable[..., Any], *args: Any, **options: Any) -> Interval:
    """The same of a function that gives nothing negative, such as ReLU."""
    found = monotone(f, *args, **options)
    return Interval(found.low, found.high, nonnegative=True)


def smooth(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """A function that rises and changes by at most 1 + |x|, computed up to a few roundings, such as tanh."""
    return _rounded(signless(f, x, *args, **options), x)


def smooth_positive(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """The same of a function that gives nothing negative, such as the sigmoid."""
    return _rounded(positive(f, x, *args, **options), x)


def rising(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """The same of a function that has a slope below 0 to choose, such as the leaky ReLU."""
    if f(x.low.new_tensor(-1.0), *args, **options) > 0:
        raise Unsupported("an activation that falls below 0")
    return smooth(f, x, *args, **options)


def valley(*lowest: float) -> Callable[..., Interval]:
    """The rule of a function that falls to its lowest place and rises from there, such as GELU."""

    def rule(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
        low, high = (f(end, *args, **options) for end in (x.low, x.high))
        least = torch.minimum(low, high)
        for place in lowest:
            least = torch.minimum(least, f(x.low.new_tensor(place).clamp(x.low, x.high), *args, **options))
        return _rounded(Interval(least, torch.maximum(low, high)), x)

    return rule


def _rounded(y: Interval, x: Interval) -> Interval:
    return y.widened(slack(FEW, x.low) * (1 + x.magnitude))


def average(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """A mean over positions, summed up in any order."""
    y = monotone(f, x, *args, **options)
    n = max(x.low.numel() // max(1, y.low.numel()), math.prod(x.low.shape[2:]))
    return y.widened(slack(n, x.low) * f(x.magnitude, *args, **options))


def corners(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    """A product, or a quotient by an exact number: it is extreme at the corners, and rounds monotonically."""
    a, b = _ends(x), _ends(y)
    found = [f(p, q) for p in a for q in b]
    low = high = found[0]
    for value in found[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    signs = [v.nonnegative if isinstance(v, Interval) else isinstance(v, int | float) and v >= 0 for v in (x, y)]
    return Interval(low, high, all(signs))


def added(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    exact = not (isinstance(x, Interval) and isinstance(y, Interval))
    return (signless if exact else monotone)(f, x, y)


def subtracted(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    (a, *_, b), (c, *_, d) = _ends(x) * 2, _ends(y) * 2
    return Interval(f(a, d), f(b, c))


def _ends(x: Any) -> tuple[Any, ...]:
    if not isinstance(x, Interval):
        return (x,)
    return (x.low,) if x.is_point else (x.low, x.high)


def of_type(kind: type, values: Any) -> Iterator[Any]:
    """Those in arguments, also in lists of them."""
    if isinstance(values, kind):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from of_type(kind, value)


def each(values: Any, end: Callable[[Interval], Tensor]) -> Any:
    """Arguments with an end in place of each interval."""
    if isinstance(values, Interval):
        return end(values)
    if isinstance(values, list | tuple):
        return type(values)(each(value, end) for value in values)
    return values
