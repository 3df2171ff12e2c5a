"""From devices to weights: bits on devices, write-verify, and the weight perturbation bound (Eq. 1-4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worstcase.checks import number, whole

BITS = 32
"""The most bits of a weight or a device."""
PULSES = 10**15
"""The budget of a device, at most."""


def device_weights(weight_bits: int, device_bits: int) -> list[int]:
    """2^(i K) for each of the M / K devices of a weight, the least significant first (Eq. 4).

    Args:
        weight_bits: M, 1 to 32.
        device_bits: K, 1 to 32; M must be divisible by it.

    Raises:
        ValueError: out of range, or not divisible.

    Example:
        >>> device_weights(weight_bits=8, device_bits=2)
        [1, 4, 16, 64]
    """
    whole("weight_bits", weight_bits, least=1, most=BITS)
    whole("device_bits", device_bits, least=1, most=BITS)
    if weight_bits % device_bits:
        raise ValueError(f"weight_bits={weight_bits} is not divisible by device_bits={device_bits}")
    return [2**power for power in range(0, weight_bits, device_bits)]


def perturbation_bound(tolerance: float, weight_bits: int, device_bits: int) -> float:
    """The weight perturbation bound th_g: the sum of th x 2^(i K) over a weight's devices (Eq. 4) over 2^M - 1.

    Args:
        tolerance: th, the largest deviation of a device after write-verify, in units of one level of it.
        weight_bits: M.
        device_bits: K.

    Returns:
        A fraction of the full scale. The paper gives 0.03 for th = 0.06; Eq. 4 gives 0.3 levels (M = 4, K = 2), or
        0.02.

    Example:
        >>> perturbation_bound(0.06, weight_bits=4, device_bits=2)
        0.02
    """
    number("tolerance", tolerance, low=0)
    return tolerance * sum(device_weights(weight_bits, device_bits)) / (2**weight_bits - 1)


@dataclass(frozen=True)
class Programmed:
    """Devices after write-verify."""

    deviation: Tensor
    """The deviation of each device from its target, in level units."""
    pulses: Tensor
    """Programming pulses that each device took."""
    verified: Tensor
    """Whether it is within the tolerance; the others spent the budget and keep their last deviation."""

    @property
    def mean_pulses(self) -> float:
        """The cost of programming a device."""
        return self.pulses.double().mean().item()

    @property
    def failed(self) -> int:
        """Devices that are outside the tolerance."""
        return int((~self.verified).sum())


def write_verify(
    shape: tuple[int, ...],
    sigma: float,
    tolerance: float,
    *,
    max_pulses: int = 1000,
    generator: torch.Generator | None = None,
) -> Programmed:
    """Program devices pulse by pulse until each is within the tolerance or its budget is spent.

    After each pulse a device's deviation is drawn anew from N(0, sigma). So verified deviations follow the
    Gaussian truncated at the tolerance, and a device takes 1 / erf(tolerance / (sigma sqrt 2)) pulses on
    average if the budget does not matter. What this leaves is drawn at once, however many pulses it takes: their
    number is geometric, and a device that fails follows the Gaussian outside the tolerance.

    Args:
        shape: of the devices.
        sigma: standard deviation after one pulse, in level units, 0 or more.
        tolerance: th, in level units, 0 or more.
        max_pulses: the budget of a device, 1 to 10^15.
        generator: draws, on the CPU; None: torch's default.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> done = write_verify((1000,), sigma=0.1, tolerance=0.06, generator=torch.Generator().manual_seed(0))
        >>> bool(done.deviation.abs().max() <= 0.06), done.failed
        (True, 0)
    """
    number("sigma", sigma, low=0)
    number("tolerance", tolerance, low=0)
    whole("max_pulses", max_pulses, most=PULSES)
    t = tolerance / sigma if sigma else math.inf  # in units of sigma
    hit, miss = math.erf(t / math.sqrt(2)), math.erfc(t / math.sqrt(2))
    pulses = _geometric(torch.rand(shape, generator=generator, dtype=torch.double), hit, miss)
    verified = pulses <= max_pulses
    # where a device is: in the order of what a deviation can be, -1 to 1
    place = torch.rand(shape, generator=generator, dtype=torch.double) * 2 - 1
    deviation = torch.zeros(shape, dtype=torch.double)
    if sigma:
        inside = sigma * math.sqrt(2) * torch.erfinv(place[verified] * hit)
        deviation[verified] = inside.clamp(-tolerance, tolerance)
        place = place[~verified]
        tail = (1 - place.abs()).clamp_min(2.0**-53) * (miss / 2)
        outside = (-sigma * torch.special.ndtri(tail)).clamp_min(math.nextafter(tolerance, math.inf))
        deviation[~verified] = outside.copysign(place)
    return Programmed(deviation, pulses.clamp_max(max_pulses).long(), verified)


def _geometric(uniform: Tensor, hit: float, miss: float) -> Tensor:
    """The number of tries until the first hit, from a number in 0..1: float64, infinite where none ever is.

    The chances of a hit and of a miss add up to 1. Both are given: neither loses its digits where it is small.
    """
    if not hit:
        return torch.full_like(uniform, math.inf)
    log_miss = math.log1p(-hit) if hit < 0.5 else math.log(miss) if miss else -math.inf
    return (torch.log1p(-uniform) / log_miss).ceil().clamp_min(1)
