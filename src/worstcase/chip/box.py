"""The box: all deviations of the weights that write-verify lets pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from worstcase.checks import choice, number
from worstcase.chip.float64 import has_float64, in_float64, like

Perturbation = Mapping[str, Tensor]
"""A deviation of every weight, by array, in weight units and of the weight's shape."""


@dataclass(frozen=True, eq=False)
class Box:
    """For each weight the deviations from `low` to `high`, both included; 0 is one of them.

    All tensors are by array, which is named as its parameter. `Crossbar.box` makes one.

    Example:
        >>> box = Box.symmetric(0.1, {"w": torch.tensor(2.0)}, {"w": torch.empty(3)})
        >>> deviation = {"w": torch.tensor([0.05, -0.7, 0.3])}
        >>> box.contains(deviation), box.outside(deviation), box.project(deviation)["w"]
        (False, 2, tensor([ 0.0500, -0.2000,  0.2000]))
    """

    low: dict[str, Tensor]
    """The least deviation, 0 or less: detached, in the weight's units and dtype; it broadcasts to the weight."""
    high: dict[str, Tensor]
    """The greatest, 0 or more."""
    weights: dict[str, Tensor] = field(repr=False)
    """Tensors of the shapes and dtypes of the weights, and where they are; their values do not matter."""

    @classmethod
    @torch.inference_mode(False)  # an attack computes gradients with what is made here
    def symmetric(cls, thg: float, full_scales: Mapping[str, Tensor], weights: dict[str, Tensor]) -> Box:
        """From -th_g to th_g times the full scale, rounded toward zero to the dtype of the weights.

        A deviation in this box is never above th_g when its ratio to the full scale is taken in float64.

        Args:
            thg: th_g, 0 or more.
            full_scales: a float64 scalar for each array, in weight units.
            weights: see the attribute.
        """
        high = {name: _rounded(thg, full_scales[name], weight) for name, weight in weights.items()}
        return cls({name: -end for name, end in high.items()}, high, weights)

    @classmethod
    @torch.inference_mode(False)
    def between(
        cls,
        ends: Mapping[str, tuple[Tensor, Tensor]],
        full_scales: Mapping[str, Tensor],
        weights: dict[str, Tensor],
    ) -> Box:
        """From a low to a high end in units of the full scale, rounded as by `symmetric`.

        Args:
            ends: for each array the least deviation, 0 or less, and the greatest, 0 or more, in float64.
            full_scales, weights: see `symmetric`.
        """
        low, high = {}, {}
        for name, weight in weights.items():
            low[name] = -_rounded(-ends[name][0], full_scales[name], weight)
            high[name] = _rounded(ends[name][1], full_scales[name], weight)
        return cls(low, high, weights)

    @cached_property
    @torch.inference_mode(False)
    def half_width(self) -> dict[str, Tensor]:
        """(high - low) / 2, which broadcasts to the weight."""
        return {name: (high - self.low[name]) / 2 for name, high in self.high.items()}

    @cached_property
    @torch.inference_mode(False)
    def reach(self) -> dict[str, Tensor]:
        """The farther end's absolute deviation, the unit of an attack's steps: from 0 so many reach either end."""
        return {name: torch.maximum(high, -self.low[name]) for name, high in self.high.items()}

    @cached_property
    def movable(self) -> set[str]:
        """The arrays of which a weight may deviate."""
        return {name for name, high in self.high.items() if bool((high > self.low[name]).any())}

    # ---- boxes made of this one

    @torch.inference_mode(False)
    def restricted_to(self, factors: Mapping[str, Tensor | float]) -> Box:
        """The part of the box in which only some weights deviate; the others are programmed exactly.

        Args:
            factors: by array what both ends are multiplied by, 0..1: a number, or a tensor that broadcasts to the
                weight. Arrays that are not named do not deviate.

        Raises:
            ValueError: there is no such array, a factor is not in 0..1, or its shape does not fit.

        Example:
            >>> box = Box.symmetric(0.5, {"w": torch.ones(())}, {"w": torch.empty(3)})
            >>> box.restricted_to({"w": torch.tensor([1.0, 0.0, 1.0])}).high["w"]
            tensor([0.5000, 0.0000, 0.5000])
        """
        if unknown := sorted(factors.keys() - self.weights.keys()):
            raise ValueError(f"factors has {unknown[0]}, but the arrays are {', '.join(self.weights)}")
        checked = {}
        for name, weight in self.weights.items():
            factor = torch.as_tensor(factors.get(name, 0.0))
            if not bool(((factor >= 0) & (factor <= 1)).all()):
                raise ValueError(f"factors of {name}: each must be 0..1, the share of the box that is left")
            try:
                factor.expand(weight.shape)
            except RuntimeError:
                raise ValueError(
                    f"factors of {name}: shape {tuple(factor.shape)} does not broadcast to {tuple(weight.shape)}"
                ) from None
            checked[name] = like(weight, factor)
        return self._times(checked)

    def scaled(self, factor: float) -> Box:
        """The box times a number, 0 or more.

        Raises:
            ValueError: the factor is something else.
        """
        number("factor", factor, low=0)
        return self._times(dict.fromkeys(self.weights, factor))

    def part_as(self, part: Box, *, of: Box) -> Box:
        """The same part of this box, on each side of each weight, as one box is of another."""
        shares = [
            {name: torch.where(end == 0, 0, ends[name] / end) for name, end in all_of.items()}
            for ends, all_of in ((part.low, of.low), (part.high, of.high))
        ]
        low, high = (
            {name: end * share[name] for name, end in ends.items()}
            for ends, share in zip((self.low, self.high), shares, strict=True)
        )
        return Box(low, high, self.weights)

    def to(self, device: torch.device | str) -> Box:
        """The same box on another device."""
        low, high = ({name: end.to(device) for name, end in ends.items()} for ends in (self.low, self.high))
        return Box(low, high, {name: torch.empty_like(w, device=device) for name, w in self.weights.items()})

    def _times(self, factors: Mapping[str, Tensor | float]) -> Box:
        low, high = ({name: end * factors[name] for name, end in ends.items()} for ends in (self.low, self.high))
        return Box(low, high, self.weights)

    # ---- deviations in it

    def zero(self) -> dict[str, Tensor]:
        """No deviation at all, in the shapes and dtypes of the weights."""
        return {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def sample(
        self, kind: str = "uniform", generator: torch.Generator | None = None, *, tolerance: float = 1.0
    ) -> dict[str, Tensor]:
        """Draw a deviation of each weight, independently.

        Args:
            kind: ``uniform``; ``vertex``, low or high with equal chance; or ``truncated_gaussian``, what
                write-verify leaves of a Gaussian programming error: N(0, sigma) given that it is inside.
            generator: draws; None: torch's default.
            tolerance: t of the truncated Gaussian, how many sigma an end is away from 0, above 0. Where the ends
                differ each side has a sigma of its own; with `worstcase.chip.noise.verified` both have one.

        With b the end of a symmetric box, the mean is 0 and the variance b^2 / 3 (uniform), b^2 (vertex), or
        sigma^2 (1 - 2 t phi(t) / (2 Phi(t) - 1)), where phi and Phi are the standard normal density and
        distribution.

        Raises:
            ValueError: there is no such kind, or the tolerance is not above 0.

        Example:
            >>> box = Box.symmetric(0.5, {"w": torch.ones(())}, {"w": torch.empty(1000)})
            >>> box.sample("vertex")["w"].unique()
            tensor([-0.5000,  0.5000])
        """
        choice("kind", kind, ("uniform", "vertex", "truncated_gaussian"))
        number("tolerance", tolerance, above=0, also="in units of sigma")
        sample = {}
        for name, w in self.weights.items():
            if kind == "uniform":
                place = drawn(torch.rand, w, generator, w.dtype) * 2 - 1
                sample[name] = place * self.half_width[name] + (self.low[name] + self.high[name]) / 2
            elif kind == "vertex":
                coin = drawn(partial(torch.randint, 2), w, generator, w.dtype)
                sample |= self.at({name: coin * 2 - 1})
            else:
                sample |= self.at({name: _truncated_gaussian(w, tolerance, generator)})
        self.project_(sample)  # rounding may lead beyond an end
        return sample

    # ---- any deviation, seen from the box

    def project_(self, perturbation: Perturbation) -> None:
        """Move each deviation to the nearest one in the box, in place."""
        for name, d in perturbation.items():
            d.clamp_(self.low[name], self.high[name])

    def project(self, perturbation: Perturbation) -> dict[str, Tensor]:
        """The nearest perturbation in the box."""
        return {name: d.clamp(self.low[name], self.high[name]) for name, d in perturbation.items()}

    def step_(self, perturbation: Perturbation, gradient: Perturbation, size: Perturbation) -> None:
        """Take a sign step against a gradient and project, in place.

        Args:
            perturbation: is moved.
            gradient: only its sign matters.
            size: of the step, by array in weight units, such as `reach` / 10; it broadcasts to the weight.
        """
        for name, d in perturbation.items():
            d -= gradient[name].sign().mul_(size[name])
        self.project_(perturbation)

    def contains(self, perturbation: Perturbation) -> bool:
        """Whether it is a deviation of exactly these arrays, in their shapes, and each weight's is in the box.

        There is no margin: what is one rounding step outside is outside, and so is NaN.
        """
        shapes = {name: d.shape for name, d in perturbation.items()}
        return shapes == {n: w.shape for n, w in self.weights.items()} and not self.outside(perturbation)

    def outside(self, perturbation: Perturbation) -> int:
        """The number of weights, in the named arrays, whose deviation is outside the box."""
        return sum(int((~self._inside(name, d)).sum()) for name, d in perturbation.items())

    def _inside(self, name: str, d: Tensor) -> Tensor:
        low, high = self.low[name], self.high[name]
        d = d.to(low.device, torch.promote_types(d.dtype, low.dtype))  # a scalar end would be rounded to d's dtype
        return (d >= low) & (d <= high)

    def is_part_of(self, other: Box) -> bool:
        """Whether the other box has the same arrays and contains this one."""
        return self.weights.keys() == other.weights.keys() and all(
            weight.shape == other.weights[name].shape
            and bool(other._inside(name, self.low[name]).all() & other._inside(name, self.high[name]).all())
            for name, weight in self.weights.items()
        )

    def relative(self, perturbation: Perturbation) -> dict[str, Tensor]:
        """Each deviation in units of the end on its side: -1 at `low`, 0 where there is none, 1 at `high`.

        In float32 at least; infinite where a weight deviates that may not.
        """
        relative = {}
        for name, d in perturbation.items():
            wide = torch.promote_types(d.dtype, torch.float32)
            end = torch.where(d < 0, -self.low[name], self.high[name])
            relative[name] = torch.where(d == 0, 0, d.to(wide) / end.to(wide))
        return relative

    def at(self, relative: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The deviations at a place in the box, the inverse of `relative`: -1 gives `low`, 0 none, 1 `high`."""
        return {
            name: x.clamp(max=0) * -self.low[name] + x.clamp(min=0) * self.high[name]
            for name, x in relative.items()
        }


def _rounded(relative: Tensor | float, full_scale: Tensor, weight: Tensor) -> Tensor:
    """A deviation, 0 or more, in a weight's units and dtype: the last that is not above its relative one."""
    end = (relative * full_scale).to(weight.dtype)
    too_large = end.double() / full_scale > relative  # false where the full scale is 0
    end = torch.where(too_large, torch.nextafter(end, torch.zeros_like(end)), end)
    return end.to(weight.device)


def drawn(
    draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None, dtype: torch.dtype
) -> Tensor:
    """Random numbers in the shape of a tensor and where it is, drawn where the generator is."""
    device = generator.device if generator else like.device
    return draw(like.shape, generator=generator, device=device, dtype=dtype).to(like.device)


def _truncated_gaussian(weight: Tensor, tolerance: float, generator: torch.Generator | None) -> Tensor:
    """N(0, 1 / tolerance) given that it is in -1..1, of a weight's shape and dtype."""
    wide = torch.double if has_float64(weight.device) else torch.float32
    u = in_float64(drawn(torch.rand, weight, generator, wide)) * 2 - 1
    return like(weight, torch.erfinv(u * math.erf(tolerance / math.sqrt(2))) * (math.sqrt(2) / tolerance))
