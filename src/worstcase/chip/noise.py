"""Random perturbations of weights that may leave the box, for Monte Carlo and for training.

Those that stay in the box are drawn by `Box.sample`. Each function here draws a deviation for every tensor of a
mapping, in its shape and dtype and where it is. `per_device` composes any of them, and `Box.sample`, from devices
by Eq. 4, and `each_device` from the devices of a crossbar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from worstcase.checks import number
from worstcase.chip.box import Box, drawn
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.float64 import has_float64, in_float64, like
from worstcase.chip.write_verify import device_weights, write_verify

Sample = dict[str, Tensor]
Draw = Callable[[torch.Generator | None], Sample]
"""Draws a deviation of every weight, by a generator or by torch's default."""


def gaussian(
    weights: Mapping[str, Tensor], sigma: Mapping[str, Tensor], generator: torch.Generator | None = None
) -> Sample:
    """N(0, sigma): mean 0, standard deviation sigma; not bounded.

    Args:
        weights: see the module.
        sigma: by the same names, in weight units; it broadcasts to the weight.
        generator: draws; None: torch's default.

    Example:
        >>> gaussian({"w": torch.empty(2, 3)}, {"w": torch.tensor(0.1)})["w"].shape
        torch.Size([2, 3])
    """
    return {name: _randn(w, generator) * like(w, sigma[name]) for name, w in weights.items()}


def right_censored_gaussian(
    weights: Mapping[str, Tensor],
    sigma: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    *,
    threshold: float = 1.0,
) -> Sample:
    """Right-censored Gaussian (Eq. 11): N(0, sigma), values above threshold x sigma set to it; not bounded below.

    Args:
        weights, sigma, generator: see `gaussian`.
        threshold: th, in units of sigma.

    With phi and Phi the standard normal density and distribution and th the threshold, the mean is
    sigma (th (1 - Phi(th)) - phi(th)) and the mean square sigma^2 (Phi(th) - th phi(th) + th^2 (1 - Phi(th))).

    Example:
        >>> noise = right_censored_gaussian({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)})["w"]
        >>> bool(noise.max() == 0.1)
        True
    """
    sample = {}
    for name, w in weights.items():
        scale = like(w, sigma[name])
        sample[name] = (_randn(w, generator) * scale).clamp_(max=threshold * scale)
    return sample


def programmed(
    box: Box,
    generator: torch.Generator | None = None,
    *,
    tolerance: float = 1.0,
    max_pulses: int = 1000,
) -> Sample:
    """The outcome of `worstcase.chip.write_verify`: devices that fail to verify stay outside the box.

    Args:
        box: what verifies.
        generator: draws, on the CPU; None: torch's default.
        tolerance: how many sigma an end of the box is away from 0, above 0.
        max_pulses: the budget of a device. If none fails, it is the truncated Gaussian of `Box.sample`.
    """
    number("tolerance", tolerance, above=0, also="in units of sigma")
    sample = {}
    for name, w in box.weights.items():
        done = write_verify(tuple(w.shape), 1 / tolerance, 1.0, max_pulses=max_pulses, generator=generator)
        deviation = box.at({name: like(w, done.deviation)})
        inside = box.project(deviation)  # rounding may take a device that verified beyond an end
        sample[name] = torch.where(done.verified.to(w.device), inside[name], deviation[name])
    return sample


def verified(
    box: Box,
    sigma: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    *,
    max_pulses: int | None = None,
) -> Sample:
    """What write-verify leaves of N(0, sigma), for a box and a sigma of each weight's own.

    After each pulse a deviation is drawn anew until it is inside the box: N(0, sigma) given that it is inside. Its
    ends may differ; sigma is the same to both sides. A device whose budget is spent stays outside.

    Args:
        box: what verifies.
        sigma: by array, in weight units, before verification; it broadcasts to the weight.
        generator: draws; None: torch's default.
        max_pulses: the budget of a device; None: there is no end.

    Example:
        >>> box = Box.symmetric(0.2, {"w": torch.ones(())}, {"w": torch.empty(1000)})
        >>> box.contains(verified(box, {"w": torch.tensor(0.1)}))
        True
    """
    sample = {}
    for name, w in box.weights.items():
        scale = in_float64(sigma[name]).clamp_min(torch.finfo(torch.double).tiny).expand(w.shape)
        below = torch.special.ndtr(in_float64(box.low[name]) / scale)
        above = torch.special.ndtr(-in_float64(box.high[name]) / scale)
        hit = 1 - below - above
        place = in_float64(_rand(w, generator))
        d = scale * torch.special.ndtri(below + place * hit)
        inside = like(w, d).clamp(box.low[name], box.high[name])
        if max_pulses is not None:
            fails = in_float64(_rand(w, generator)) < (below + above) ** max_pulses
            tail = place * (below + above)
            outside = torch.where(tail < below, torch.special.ndtri(tail), -torch.special.ndtri(tail - below))
            fails = fails.to(w.device) & (box.low[name] < box.high[name])  # what may not deviate does not
            inside = torch.where(fails, like(w, scale * outside), inside)
        sample[name] = inside
    return sample


def per_device(draw: Draw, weight_bits: int, device_bits: int) -> Draw:
    """Draws each device of a weight and adds them up by Eq. 4.

    The box and sigma are those of the weight: th_g is reached only where all devices deviate by th in the same
    direction, and sigma is that of one device times the sum of 2^(i K).
    The variance is that of `draw` times the sum of 4^(i K) over the square of the sum of 2^(i K).

    Args:
        draw: gives a sample as if a weight were one device.
        weight_bits: M, divisible by K.
        device_bits: K.

    Example:
        >>> box = Box.symmetric(0.1, {"w": torch.ones(())}, {"w": torch.empty(1000)})
        >>> box.contains(per_device(lambda g: box.sample("uniform", g), weight_bits=4, device_bits=2)(None))
        True
    """
    weights = device_weights(weight_bits, device_bits)

    def draw_weights(generator: torch.Generator | None) -> Sample:
        devices = [draw(generator) for _ in weights]
        return {name: _weighted_mean([device[name] for device in devices], weights) for name in devices[0]}

    return draw_weights


def each_device(
    crossbar: Crossbar,
    box: Box,
    draw: Callable[[Box, Mapping[str, Tensor]], Draw],
    sigma: float | None = None,
) -> Draw:
    """Draws each device of a weight in its own box, and adds them up: pairs, bits, tables, cut-offs.

    Devices are sound: where a weight may be stuck, it is not.

    Args:
        crossbar: tells the devices.
        box: the crossbar's or a part of it, and where to draw. Devices have the same part of theirs.
        draw: gives what draws one device of each weight, for its box and its standard deviation in weight units.
        sigma: see `Crossbar.devices`.
    """
    where = next(iter(box.weights.values())).device
    whole = crossbar.box.to(where)
    devices = [
        (device.to(where).part_as(box, of=whole), {name: s.to(where) for name, s in scale.items()})
        for device, scale in crossbar.devices(sigma)
    ]
    draws = [draw(*device) for device in devices]

    def draw_weights(generator: torch.Generator | None) -> Sample:
        parts = [draw_one(generator) for draw_one in draws]
        added = {
            name: like(w, torch.stack([in_float64(part[name]) for part in parts]).sum(0))
            for name, w in box.weights.items()
        }
        inside = box.project(added)  # rounding may lead beyond an end, and so may devices that did not verify
        for (device, _), part in zip(devices, parts, strict=True):
            for name, d in part.items():
                verified = (d >= device.low[name]) & (d <= device.high[name])
                inside[name] = torch.where(verified, inside[name], added[name])
        return inside

    return draw_weights


def verified_devices(
    crossbar: Crossbar, box: Box, sigma: float | None = None, *, max_pulses: int | None = None
) -> Draw:
    """What write-verify leaves of each device of a weight, see `each_device` and `verified`.

    Example:
        >>> from worstcase import DeviceMapping
        >>> crossbar = Crossbar(torch.nn.Linear(2, 1), thg=0.1, mapping=DeviceMapping(pair=True))
        >>> crossbar.box.contains(verified_devices(crossbar, crossbar.box)(None))
        True
    """
    return each_device(crossbar, box, partial(partial, verified, max_pulses=max_pulses), sigma)


def _weighted_mean(devices: list[Tensor], weights: list[int]) -> Tensor:
    """The mean of the devices' deviations, which rounding must not take beyond the largest of them."""
    stacked = in_float64(torch.stack(devices))
    shares = torch.tensor(weights, dtype=torch.double, device=stacked.device) / sum(weights)
    largest = stacked.abs().amax(0)
    mean = torch.tensordot(shares, stacked, dims=1).clamp(-largest, largest)
    return like(devices[0], mean)


def _rand(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in 0..1, without its ends, in float32 at least."""
    wide = torch.double if has_float64(weight.device) else torch.float32
    u = drawn(torch.rand, weight, generator, wide)
    return u.clamp(torch.finfo(wide).tiny, 1 - torch.finfo(wide).eps)


def _randn(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    return drawn(torch.randn, weight, generator, weight.dtype)
