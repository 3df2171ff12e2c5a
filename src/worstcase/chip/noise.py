"""Samplers of random perturbations of weights, for Monte Carlo and for training.

Each function draws a sample for every tensor of a mapping, in its shape, dtype and device. A scale (sigma,
bound) is a mapping of scalars by the same names, in weight units, as `Crossbar.bound` and
`Crossbar.full_scales` give it. `per_device` composes any of them from devices by Eq. 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from worstcase.checks import number
from worstcase.chip.crossbar import has_float64, in_float64
from worstcase.chip.write_verify import device_weights, write_verify

Scale = Mapping[str, Tensor]
Sample = dict[str, Tensor]
Sampler = Callable[[Mapping[str, Tensor], Scale, torch.Generator | None], Sample]


def gaussian(like: Mapping[str, Tensor], sigma: Scale, generator: torch.Generator | None = None) -> Sample:
    """N(0, sigma): mean 0, standard deviation sigma; not bounded.

    Example:
        >>> gaussian({"w": torch.empty(2, 3)}, {"w": torch.tensor(0.1)})["w"].shape
        torch.Size([2, 3])
    """
    return {name: _randn(t, generator) * _as(t, sigma[name]) for name, t in like.items()}


def truncated_gaussian(
    like: Mapping[str, Tensor],
    bound: Scale,
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1.0,
) -> Sample:
    """N(0, sigma) given that it is within the bound: what write-verify leaves of a Gaussian programming error.

    Args:
        like: see the module.
        bound: the largest absolute value.
        generator: draws; None: torch's default.
        tolerance: t = bound / sigma, above 0.

    With phi and Phi the standard normal density and distribution and Z = 2 Phi(t) - 1, the mean is 0 and the
    variance sigma^2 (1 - 2 t phi(t) / Z).

    Example:
        >>> noise = truncated_gaussian({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)})["w"]
        >>> bool(noise.abs().max() <= 0.1)
        True
    """
    _check_tolerance(tolerance)
    z = math.erf(tolerance / math.sqrt(2))
    sample = {}
    for name, t in like.items():
        wide = torch.double if has_float64(t.device) else torch.float32
        u = in_float64(torch.rand(t.shape, generator=generator, device=t.device, dtype=wide)) * 2 - 1
        inside = torch.erfinv(u * z) * (math.sqrt(2) / tolerance)  # in units of the bound
        sample[name] = _within(_as(t, inside) * _as(t, bound[name]), bound[name])
    return sample


def right_censored_gaussian(
    like: Mapping[str, Tensor],
    sigma: Scale,
    generator: torch.Generator | None = None,
    *,
    threshold: float = 1.0,
) -> Sample:
    """Right-censored Gaussian (Eq. 11): N(0, sigma), values above threshold x sigma set to it; not bounded below.

    With phi and Phi the standard normal density and distribution and th the threshold, the mean is
    sigma (th (1 - Phi(th)) - phi(th)) and the mean square sigma^2 (Phi(th) - th phi(th) + th^2 (1 - Phi(th))).

    Example:
        >>> noise = right_censored_gaussian({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)})["w"]
        >>> bool(noise.max() == 0.1)
        True
    """
    sample = {}
    for name, t in like.items():
        scale = _as(t, sigma[name])
        sample[name] = (_randn(t, generator) * scale).clamp_(max=threshold * scale)
    return sample


def uniform(like: Mapping[str, Tensor], bound: Scale, generator: torch.Generator | None = None) -> Sample:
    """Uniform on [-bound, bound]: mean 0, variance bound^2 / 3.

    Example:
        >>> bool(uniform({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)})["w"].abs().max() <= 0.1)
        True
    """
    return {
        name: _within(
            (torch.rand(t.shape, generator=generator, device=t.device, dtype=t.dtype) * 2 - 1)
            * _as(t, bound[name]),
            bound[name],
        )
        for name, t in like.items()
    }


def vertex(like: Mapping[str, Tensor], bound: Scale, generator: torch.Generator | None = None) -> Sample:
    """Plus or minus the bound with equal chance, a corner of the box: mean 0, variance bound^2.

    Example:
        >>> vertex({"w": torch.empty(1000)}, {"w": torch.tensor(0.5)})["w"].unique().tolist()
        [-0.5, 0.5]
    """
    sample = {}
    for name, t in like.items():
        signs = torch.randint(2, t.shape, generator=generator, device=t.device, dtype=t.dtype) * 2 - 1
        sample[name] = signs * _as(t, bound[name])
    return sample


def programmed(
    like: Mapping[str, Tensor],
    bound: Scale,
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1.0,
    max_pulses: int = 1000,
) -> Sample:
    """The outcome of `worstcase.chip.write_verify`: devices that fail to verify stay outside the bound.

    Args:
        like: see the module.
        bound: th_g of each tensor.
        generator: draws, on the CPU; None: torch's default.
        tolerance: bound / sigma, above 0.
        max_pulses: the budget of a device. If none fails, the moments are those of `truncated_gaussian`.
    """
    _check_tolerance(tolerance)
    sample = {}
    for name, t in like.items():
        done = write_verify(tuple(t.shape), 1 / tolerance, 1.0, max_pulses=max_pulses, generator=generator)
        deviation = _as(t, done.deviation) * _as(t, bound[name])
        sample[name] = torch.where(done.verified.to(t.device), _within(deviation, bound[name]), deviation)
    return sample


def per_device(sampler: Sampler, weight_bits: int, device_bits: int) -> Sampler:
    """A sampler of weights that draws each device and adds them up by Eq. 4.

    A scale is that of the weight: the bound th_g is reached only where all devices deviate by th in the same
    direction, and sigma is that of one device times the sum of 2^(i K).
    The variance is the sampler's times the sum of 4^(i K) over the square of the sum of 2^(i K).

    Args:
        sampler: any of this module.
        weight_bits: M, divisible by K.
        device_bits: K.

    Example:
        >>> draw = per_device(uniform, weight_bits=4, device_bits=2)
        >>> bool(draw({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)}, None)["w"].abs().max() <= 0.1)
        True
    """
    weights = device_weights(weight_bits, device_bits)

    def draw(like: Mapping[str, Tensor], scale: Scale, generator: torch.Generator | None = None) -> Sample:
        devices = [sampler(like, scale, generator) for _ in weights]
        return {name: _weighted_mean([device[name] for device in devices], weights) for name in like}

    return draw


def _weighted_mean(devices: list[Tensor], weights: list[int]) -> Tensor:
    """The mean of the devices' deviations, which rounding must not take beyond the largest of them."""
    stacked = in_float64(torch.stack(devices))
    shares = torch.tensor(weights, dtype=torch.double, device=stacked.device) / sum(weights)
    largest = stacked.abs().amax(0)
    mean = torch.tensordot(shares, stacked, dims=1).clamp(-largest, largest)
    return _as(devices[0], mean)


def _check_tolerance(tolerance: float) -> None:
    number("tolerance", tolerance, above=0, also="in units of sigma")


def _as(like: Tensor, x: Tensor) -> Tensor:
    """In the dtype of a tensor and on its device, the dtype first: the device may have no float64."""
    return x.to(like.dtype).to(like.device)


def _randn(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _within(sample: Tensor, bound: Tensor) -> Tensor:
    limit = _as(sample, bound)
    return sample.clamp(-limit, limit)
