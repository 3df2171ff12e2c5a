"""Linear bounds of each layer: a sum over its outputs is at least a sum over its inputs.

Each rule is made from the intervals of B samples, and takes coefficients (M, ...) of the layer's outputs, each of
which belongs to one of the samples, its row. What does not depend on the inputs is added to a `Sum`. From

    A (W h) + A (D h) >= (A W) h - b |A h|    for all |D| <= b

where A is a coefficient and b the half width of the box, follow all rules of layers with weights. See
`worstcase.certificate.backward`, also for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worstcase.certificate.products import Interval, Unsupported
from worstcase.certificate.rules import monotone

OWN = 2**-32  # of what is added up, for the roundings of the bound itself


class Sum:
    """The least value of M sums, as far as it is known."""

    def __init__(self, coefficient: Tensor) -> None:
        self.least = coefficient.new_zeros(len(coefficient))
        self.absolute = self.least  # of all that was added

    def add(self, parts: Tensor, absolute: Tensor | None = None) -> None:
        """Add parts (M, ...) up; `absolute` is theirs, if more than their absolute values was rounded."""
        self.least = self.least + parts.flatten(1).sum(1)
        absolute = (parts if absolute is None else absolute).detach().abs()
        self.absolute = self.absolute + absolute.flatten(1).sum(1)

    @property
    def bound(self) -> Tensor:
        return self.least - OWN * self.absolute


Rule = Callable[[Tensor, Tensor, Sum], Tensor]
"""From coefficients of the outputs and their rows to those of the inputs."""


class Rounded:
    """Another rule, of a layer whose outputs are off by an error at most, which is of their shape."""

    def __init__(self, rule: Rule, error: Tensor) -> None:
        self.rule, self.error = rule, error

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        total.add(-a.abs() * self.error[rows])
        return self.rule(a, rows, total)


class Fixed:
    """What does not depend on the chip."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        total.add(a * self.value[rows])
        return a


class Linear:
    """A linear layer: each output has weights of its own, so that b |A h| is |A| b |h|."""

    def __init__(self, x: Interval, weight: Interval, bias: Interval | None) -> None:
        self.w, self.b = weight.low / 2 + weight.high / 2, (weight.high - weight.low) / 2
        self.bias = bias
        self.slope, self.shift = chord(x.low, x.high)

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        _add_bias(a, self.bias, total)
        deviation = a.abs() @ self.b.expand_as(self.w)
        total.add(-deviation * self.shift[rows])
        return a @ self.w - deviation * self.slope[rows]


class Convolution:
    """A convolution of two dimensions, whose positions share the weights."""

    def __init__(
        self, x: Interval, weight: Interval, bias: Interval | None, groups: int, patches: dict[str, Any]
    ) -> None:
        self.size, self.groups, self.bias, self.patches = x.low.shape[1:], groups, bias, patches
        w, b = weight.low / 2 + weight.high / 2, (weight.high - weight.low) / 2
        shape = (groups, len(w) // groups, -1)
        self.w, self.b = w.reshape(shape), b.expand_as(w).reshape(shape)
        self.centre, self.radius = x.low / 2 + x.high / 2, None if x.is_point else (x.high - x.low) / 2

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        _add_bias(a, self.bias, total)
        a = a.reshape(len(a), self.groups, self.w.shape[1], math.prod(a.shape[2:]))
        of_kernel = a @ self._unfolded(self.centre[rows]).mT  # what each weight of the kernel is multiplied with
        if self.radius is None:
            total.add(self.w * of_kernel - self.b * of_kernel.abs())
            return a.new_zeros(len(a), *self.size)
        spread = a.abs() @ self._unfolded(self.radius[rows]).mT
        slope, shift = chord(of_kernel - spread, of_kernel + spread)
        total.add(-self.b * shift, self.b * (of_kernel.abs() + spread))
        patches = ((self.w - self.b * slope).mT @ a).flatten(1, 2)
        return F.fold(patches, self.size[1:], **self.patches)

    def _unfolded(self, h: Tensor) -> Tensor:
        patches = F.unfold(h, **self.patches)
        return patches.reshape(len(h), self.groups, self.w.shape[2], patches.shape[2])


def shared(layer: nn.Module, x: Interval, weight: Interval, bias: Interval | None) -> Rule:
    """The rule of a convolution of one or two dimensions, or of a linear layer at several positions."""
    if isinstance(layer, nn.Linear):
        size = x.low.shape[1:-1]
        patches: dict[str, Any] = {"kernel_size": 1}
        x = monotone(lambda t: t.movedim(-1, 1).flatten(2)[:, :, None], x)
        rule = Convolution(x, monotone(lambda w: w[:, :, None, None], weight), bias, 1, patches)
        return lambda a, rows, total: (
            rule(a.movedim(-1, 1).flatten(2)[:, :, None], rows, total).reshape(len(a), -1, *size).movedim(1, -1)
        )
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        raise Unsupported(f"{type(layer).__name__} by linear bounds")
    window = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")}
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        around: Any = layer._reversed_padding_repeated_twice
        mode = layer.padding_mode.replace("zeros", "constant")
        pad = Map(lambda t: F.pad(t, around, mode=mode), x.low.shape[1:])
        inner = _of_window(layer, monotone(pad.f, x), weight, bias, window | {"padding": (0,) * (x.low.ndim - 2)})
        return lambda a, rows, total: pad(inner(a, rows, total), rows, total)
    return _of_window(layer, x, weight, bias, window)


def _of_window(
    layer: nn.Conv1d | nn.Conv2d, x: Interval, weight: Interval, bias: Interval | None, window: dict[str, Any]
) -> Rule:
    if isinstance(layer, nn.Conv2d):
        return Convolution(x, weight, bias, layer.groups, window)
    x, weight = (monotone(lambda t: t[:, :, None], one) for one in (x, weight))
    return in_a_row(Convolution(x, weight, bias, layer.groups, two_dimensions(window)))


def two_dimensions(window: dict[str, Any]) -> dict[str, Any]:
    """A window of one dimension as one of two, one high.

    Example:
        >>> two_dimensions({"kernel_size": (3,), "padding": 1})
        {'kernel_size': (1, 3), 'padding': (0, 1)}
    """
    high = {"kernel_size": 1, "dilation": 1, "padding": 0, "stride": 1}
    return {name: (high[name], *((own,) if isinstance(own, int) else own)) for name, own in window.items()}


def in_a_row(rule: Rule) -> Rule:
    """Of one dimension, by the rule of two."""
    return lambda a, rows, total: rule(a[:, :, None], rows, total)[:, :, 0]


class Scaled:
    """Each channel times a number, and another added, such as batch norm in eval mode."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        total.add(a * self.shift)
        return a * self.scale


class ReLU:
    """Above z and 0, and so above any slope z between; below the chord."""

    def __init__(self, x: Interval) -> None:
        low, high = x.low, x.high
        unsure = (low < 0) & (high > 0)
        one = (low >= 0).to(low.dtype)
        self.upper = torch.where(unsure, high / torch.where(unsure, high - low, 1), one)
        self.shift = torch.where(unsure, -self.upper * low, 0 * low)
        self.largest = torch.where(unsure, torch.maximum(high, -low), 0 * low)
        self.lower = (high > -low).to(low.dtype)

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        below, above = a.clamp_min(0), a.clamp_max(0)
        total.add(above * self.shift[rows], above * self.largest[rows])
        return below * self.lower[rows] + above * self.upper[rows]


class Bent:
    """x above 0 and a slope times x below, such as the leaky ReLU: a share of x, and the rest of its ReLU."""

    def __init__(self, x: Interval, slope: float) -> None:
        self.relu, self.slope = ReLU(x), slope

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        return self.slope * a + self.relu((1 - self.slope) * a, rows, total)


class MaxPool:
    """Above each of its inputs, such as the one whose interval lies highest.

    Below m + the chord of max(h - m, 0), where h is the input that reaches highest and m what the others reach.
    """

    def __init__(
        self, x: Interval, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> None:
        self.size = x.low.shape[1:]
        kernel, step, before, apart = (
            (one, one) if isinstance(one, int) else tuple(one) for one in (kernel_size, stride, padding, dilation)
        )
        best, top = (
            F.max_pool2d(t.contiguous(), kernel, step, before, apart, ceil_mode, return_indices=True)[1]
            for t in (x.low + x.high, x.high)
        )
        axes = zip(top.shape[2:], step, apart, kernel, before, self.size[1:], strict=True)
        after = [(outputs - 1) * s + d * (k - 1) + 1 - p - inputs for outputs, s, d, k, p, inputs in axes]
        places = torch.arange(float(self.size[1:].numel()), dtype=torch.double, device=x.low.device)
        around = (before[1], after[1], before[0], after[0])
        places = F.pad(places.reshape(1, 1, *self.size[1:]), around, value=-1.0)
        places = F.unfold(places, kernel, apart, 0, step)[0].long()  # (window, outputs); -1 is outside
        self.best, self.top = best.flatten(2), top.flatten(2)
        low, high = (end.flatten(2) for end in (x.low, x.high))
        windows = high[:, :, places.clamp_min(0)]  # (B, C, window, outputs)
        others = windows.masked_fill((places < 0) | (places == self.top[:, :, None]), -torch.inf).amax(2)
        low, high = low.gather(2, self.top), high.gather(2, self.top)
        certain = low >= others
        others = torch.where(certain, low, others)
        self.slope = torch.where(certain, 1, (high - others) / torch.where(certain, 1, high - low))
        self.shift = torch.where(certain, 0, others - self.slope * low)
        self.largest = torch.where(certain, 0, torch.maximum(low.abs(), high.abs()))

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        below, above = a.clamp_min(0).flatten(2), a.clamp_max(0).flatten(2)
        total.add(above * self.shift[rows], 2 * above * self.largest[rows])
        found = a.new_zeros(len(a), self.size[0], self.size[1] * self.size[2])
        found = found.scatter_add(2, self.best[rows], below)
        found = found.scatter_add(2, self.top[rows], above * self.slope[rows])
        return found.reshape(len(a), *self.size)


class Map:
    """A map without weights that is linear, such as an average, or adds a constant beside."""

    def __init__(self, f: Callable[[Tensor], Tensor], size: torch.Size) -> None:
        self.f, self.size = f, size

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        constant, back, *_ = torch.func.vjp(self.f, a.new_zeros(len(a), *self.size))
        total.add(a * constant)
        found: Tensor = back(a)[0]
        return found


class Reshaped:
    """The same values in the same order."""

    def __init__(self, size: torch.Size) -> None:
        self.size = size

    def __call__(self, a: Tensor, rows: Tensor, total: Sum) -> Tensor:
        return a.reshape(len(a), *self.size)


def chord(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The line above |x| between two ends, its slope and its value at 0; |x| itself where its sign is certain.

    Example:
        >>> chord(torch.tensor([-1.0, 2.0, -3.0]), torch.tensor([3.0, 4.0, 0.0]))
        (tensor([ 0.5000,  1.0000, -1.0000]), tensor([1.5000, 0.0000, 0.0000]))
    """
    unsure = (low < 0) & (high > 0)
    width = torch.where(unsure, high - low, 1)
    slope = torch.where(unsure, (high + low) / width, torch.where(low < 0, -1.0, 1.0).to(low.dtype))
    return slope, torch.where(unsure, -2 * low * high / width, 0)


def _add_bias(a: Tensor, bias: Interval | None, total: Sum) -> None:
    if bias is None:
        return
    of_each = a.flatten(2).sum(2) if a.ndim > 2 else a  # positions share the bias
    total.add(of_each * (bias.low / 2 + bias.high / 2) - of_each.abs() * (bias.high - bias.low) / 2)
