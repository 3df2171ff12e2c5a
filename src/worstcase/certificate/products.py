"""Products of a weight in its box and inputs in their interval, and how rounding is counted.

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from worstcase.chip import float32


class Unsupported(NotImplementedError):  # noqa: N818 (it says what it is)
    """A part of the network has no rule; the message names it."""


@dataclass(frozen=True, eq=False)
class Interval:
    """All tensors between two, both included.

    Example:
        >>> x = Interval(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 3.0]))
        >>> x.is_point, x.magnitude
        (False, tensor([1., 3.]))
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
        eps = torch.finfo(self.low.dtype).eps
        centre = self.low / 2 + self.high / 2
        radius = self.high / 2 - self.low / 2 + eps * centre.detach().abs()
        return centre, radius * (1 + 4 * eps)


def slack(terms: int, like: Tensor) -> float:
    """By how much of their absolute value rounding may move the weights of a sum of so many products.

    It is gamma_k with k = 2 terms + 16: once for the network, once for the bound itself. Where float32 factors may
    be rounded to TF32, as by default in convolutions on a GPU, 2^-8 more. Infinite if k u is 1 or more.
    """
    ku = (2 * terms + 16) * torch.finfo(like.dtype).eps / 2
    rounded = float32.of_others() | (float32.of_cudnn() if like.is_cuda else set())
    tf32 = like.dtype == torch.float32 and "tf32" in rounded
    return ku / (1 - ku) + (2**-8 if tf32 else 0) if ku < 1 else math.inf


class Weight:
    """The box of a weight and a bias, widened for rounding, in the parts that products need; see `affine`."""

    def __init__(self, weight: Interval, bias: Interval | None, terms: int) -> None:
        self.slack = slack(terms, weight.low)
        self.box = weight.widened(self.slack * weight.magnitude.detach())
        self.bias = bias and bias.widened(self.slack * bias.magnitude.detach())

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


Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""What a linear layer or a convolution computes from inputs, a weight and a bias."""


def affine(product: Product, x: Interval, weight: Weight) -> Interval:
    """W x + b for every W and b in their boxes and every x in its interval.

    Inputs that are not negative, as after a ReLU, are at the end that a weight's sign chooses: that is exact, and
    takes four products. Otherwise the interval is c +- r, and |W x - C c| <= (|C| + R) r + R |c| for W = C +- R:
    three products, and two if r = 0.
    """
    if x.nonnegative and not x.is_point:
        low_positive, low_negative, high_positive, high_negative = weight.signed
        bias_low, bias_high = (weight.bias.low, weight.bias.high) if weight.bias else (None, None)
        low = product(x.low, low_positive, bias_low).sub_(product(x.high, low_negative, weight.no_bias))
        high = product(x.high, high_positive, bias_high).sub_(product(x.low, high_negative, weight.no_bias))
        return Interval(low, high)
    centre, both, radius = weight.around
    bias, bias_radius = weight.bias_around
    if x.is_point:
        middle, spread = product(x.low, centre, bias), product(x.low.abs(), radius, bias_radius)
    else:
        c, r = x.around()
        middle = product(c, centre, bias)
        spread = product(c.abs(), radius, bias_radius) + product(r, both, weight.no_bias)
    low = middle - spread
    return Interval(low, middle.add_(spread))


def margins_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """By how much the label's output leads each other one: (N, classes); its own is infinite."""
    column = labels[:, None]
    return (outputs.gather(1, column) - outputs).scatter(1, column, math.inf)


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
            low, high = (
                end.broadcast_to(1, len(weight.box.low))[0] for end in (weight.bias.low, weight.bias.high)
            )
            margin += low[label] - high
        margin[:, label] = math.inf
        found[rows] = margin
    return found


def terms(weight: Tensor, *, transposed: bool = False) -> int:
    """Products in one output, at most."""
    return weight.numel() // max(1, weight.shape[1 if transposed else 0]) if weight.ndim > 1 else weight.numel()
