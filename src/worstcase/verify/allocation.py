"""Where write-verify has to be tight: a bound for each weight, at the least cost in pulses."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from worstcase.verify.cost import Programming

WIDEST = 3.0
"""The widest bound, in sigma of a device: nearly every device passes at once, so a wider one saves nothing."""
_ROWS = 20_000  # of the table from price to bound
_TIGHTEST = 1e-6  # of its bounds, in sigma


def allocated(
    sensitivity: Mapping[str, Tensor], pulses: float, programming: Programming | None = None
) -> dict[str, Tensor]:
    """Share out pulses so that the damage to first order, the sum of sensitivity x bound, is least.

    A bound of th_g takes 1 / erf(t / sqrt 2) pulses a device, where t is the bound in sigma. That is convex, so at
    the least damage each weight's last pulse lowers it equally: t is where the slope of the cost is the
    sensitivity times a price, and the price is that at which the pulses are spent.

    Args:
        sensitivity: of each weight, by array: how fast the damage grows with its bound, 0 or more and not all 0.
        pulses: a weight, on average over all weights; more than it has devices. No bound is wider than 1, nor than
            3 sigma of a device: where these take more, they are all as wide.
        programming: of the devices; None: those of the paper's example.

    Returns:
        th_g of each weight, at most 1, by array, in the sensitivity's shapes, in float64.

    Raises:
        ValueError: fewer pulses than devices, more than 10^6 for each, or sensitivities that are negative, not
            finite, or all 0.

    Example:
        >>> bounds = allocated({"w": torch.tensor([1.0, 10.0])}, pulses=4.0)["w"]
        >>> bool(bounds[1] < bounds[0]), round(Programming().pulses(bounds).mean().item(), 3)
        (True, 4.0)
    """
    programming = programming or Programming()
    programming.bound_of(pulses)  # raises where no bound takes so many
    flat = torch.cat([one.detach().double().flatten().cpu() for one in sensitivity.values()])
    if not bool((flat.isfinite() & (flat >= 0)).all()) or not bool(flat.any()):
        raise ValueError("sensitivity: each must be finite and 0 or more, and not all may be 0")
    bounds = _bounds(flat, _price(flat, pulses, programming), programming)
    parts = bounds.split([one.numel() for one in sensitivity.values()])
    return {name: part.reshape(one.shape) for (name, one), part in zip(sensitivity.items(), parts, strict=True)}


def _price(sensitivity: Tensor, pulses: float, programming: Programming) -> float:
    """The logarithm of the price at which so many pulses are spent, by bisection."""
    low, high = -200.0, 200.0
    for _ in range(80):
        middle = (low + high) / 2
        bounds = _bounds(sensitivity, middle, programming)
        low, high = (low, middle) if programming.pulses(bounds).mean() > pulses else (middle, high)
    return low


def _bounds(sensitivity: Tensor, log_price: float, programming: Programming) -> Tensor:
    """th_g of each weight, at most 1, the full scale."""
    return (_at_price(sensitivity, log_price) / programming.sigmas_of_full_scale).clamp_max(1.0)


def _at_price(sensitivity: Tensor, log_price: float) -> Tensor:
    """The bound of each weight in sigma, where a pulse is worth so much."""
    bounds = torch.logspace(math.log10(_TIGHTEST), math.log10(WIDEST), _ROWS, dtype=torch.double)
    rising = -_log_slope(bounds)
    at = -(sensitivity.log() + log_price)
    right = torch.searchsorted(rising, at).clamp(1, _ROWS - 1)
    share = ((at - rising[right - 1]) / (rising[right] - rising[right - 1])).clamp(0, 1)
    return torch.lerp(bounds[right - 1], bounds[right], share)


def _log_slope(bound: Tensor) -> Tensor:
    """log of -d/dt 1 / erf(t / sqrt 2), which falls with t."""
    return (
        math.log(math.sqrt(2 / math.pi)) - bound.square() / 2 - 2 * torch.special.erf(bound / math.sqrt(2)).log()
    )
