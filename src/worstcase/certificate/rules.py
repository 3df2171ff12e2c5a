"""Interval bounds of each layer: if what goes in lies between `low` and `high`, so does what comes out.

Layers with weights are in `worstcase.certificate.products`, which also tells how rounding is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worstcase.certificate.products import Interval, Unsupported, slack

FEW = 8  # roundings of an elementwise formula, at most


# ---- norms, whose parameters are exact


def batch_norm(x: Interval, mean: Tensor, var: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Interval:
    """Bounds of a batch norm in eval mode, with its fixed statistics."""
    mean, var, scale, shift = (t.reshape(-1, *[1] * (x.low.ndim - 2)) for t in (mean, var, scale, shift))
    scale = scale / torch.sqrt(var + eps)
    move = shift - mean * scale
    low, high = x.low * scale, x.high * scale
    if not bool((scale >= 0).all()):
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    factor = slack(
        FEW, x.low
    )  # of the largest absolute value, so that rounding is above factor * |low| and |high|
    rounding = torch.maximum(high, -low).mul_(factor).add_(factor * ((mean * scale).abs() + shift.abs()))
    return Interval((low + move).sub_(rounding), (high + move).add_(rounding))


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


def padded(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """The same of padding, by a number that may be negative."""
    y: Interval = monotone(f, x, *args, **options)
    if y.nonnegative and bool((f(torch.zeros_like(x.low), *args, **options) < 0).any()):
        return Interval(y.low, y.high)
    return y


def smooth(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """A function that rises and changes by at most 1 + |x|, computed up to a few roundings, such as tanh."""
    return _rounded(signless(f, x, *args, **options), x)


def smooth_positive(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """The same of a function that gives nothing negative, such as the sigmoid."""
    return _rounded(positive(f, x, *args, **options), x)


def softplus(f: Callable[..., Tensor], x: Interval, beta: float = 1.0, threshold: float = 20.0) -> Interval:
    """As PyTorch computes it: where beta x passes the threshold it falls, by at most exp(-threshold) / beta."""
    if isinstance(f, nn.Softplus):
        beta, threshold = f.beta, f.threshold
    if not (beta > 0 and threshold >= 0):
        raise Unsupported(f"softplus with beta={beta:g} and threshold={threshold:g}")
    y = smooth_positive(F.softplus, x, beta, threshold)
    return y.widened(torch.full_like(y.low, math.exp(-threshold) / beta))


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
    return y.widened(slack(FEW, x.low) * (1 + x.magnitude + y.magnitude))


def average(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """A mean or a sum over positions, added up in any order."""
    y, size = monotone(f, x, *args, **options), f(x.magnitude, *args, **options)
    if bool((size < 0).any()):
        raise Unsupported("an average with a divisor below 0")
    n = max(x.low.numel() // max(1, y.low.numel()), math.prod(x.low.shape[2:]))
    return y.widened(slack(n, x.low) * size)


def resized(f: Callable[..., Tensor], x: Interval, *args: Any, **options: Any) -> Interval:
    """Images of another size, whose points are means of others'; cubic ones are not."""
    mode = f.mode if isinstance(f, nn.Upsample) else dict(enumerate(args)).get(2, options.get("mode", "nearest"))
    if mode == "bicubic":
        raise Unsupported("bicubic interpolation, which has weights below 0")
    return average(f, x, *args, **options)


def corners(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    """A product, or a quotient by an exact number: it is extreme at the corners, and rounds monotonically."""
    a, b = _ends(x), _ends(y)
    found = [f(p, q) for p in a for q in b]
    low = high = found[0]
    for value in found[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    signs = [v.nonnegative if isinstance(v, Interval) else isinstance(v, int | float) and v >= 0 for v in (x, y)]
    return Interval(low, high, all(signs))


def quotient(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    if isinstance(y, Interval):
        raise Unsupported("a quotient by what deviates")
    return corners(f, x, y)


def negated(f: Callable[..., Tensor], x: Interval) -> Interval:
    low = f(x.high)
    return Interval(low, low if x.is_point else f(x.low))


def added(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    exact = not (isinstance(x, Interval) and isinstance(y, Interval))
    return (signless if exact else monotone)(f, x, y)


def subtracted(f: Callable[..., Tensor], x: Any, y: Any) -> Interval:
    if not isinstance(y, Interval):
        return signless(f, x, y)
    least, most = (x.low, x.high) if isinstance(x, Interval) else (x, x)
    return Interval(f(least, y.high), f(most, y.low))


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
