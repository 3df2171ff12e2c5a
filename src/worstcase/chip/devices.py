"""What the devices of all arrays let pass: from tolerances to the box of a crossbar."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from worstcase.chip.box import Box
from worstcase.chip.float64 import in_float64
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.tolerance import Said, Tolerance, has_weights, of_each_array, pattern_of_each_array
from worstcase.chip.write_verify import device_weights

Scales = Mapping[str, Tensor]
"""The full scale of each array: a float64 scalar, in weight units."""


@dataclass(frozen=True)
class Devices:
    """Tolerances of devices, by array, and how they hold a weight."""

    said: Said
    """The tolerance as it was set."""
    of: dict[str, float | Tolerance | Tensor]
    """The same of each array."""
    mapping: DeviceMapping
    weight_bits: int | None
    stuck: Mapping[str, Tensor]
    """By array the values of weights whose devices may be stuck, in units of the full scale; NaN of the others."""
    largest: float
    """The largest deviation that a weight may have, in units of its full scale."""
    limit: float
    """What it may be."""

    @classmethod
    def holding(
        cls,
        arrays: Iterable[str],
        said: Said,
        mapping: DeviceMapping,
        *,
        full_scale: str = "layer_max",
        weight_bits: int | None = None,
        stuck: Mapping[str, Tensor] | None = None,
    ) -> Devices:
        """Those of some arrays.

        Raises:
            ValueError: a number is out of range, or patterns do not fit the arrays; numbers of single weights
                stand beside a table; the mapping needs bits; or a weight cannot be stuck there.
        """
        stuck = stuck or {}
        _check(mapping, full_scale, weight_bits)
        if isinstance(said, Tensor) and said.ndim:
            raise ValueError("thg: a tensor with a number for each weight needs its array's name, {NAME: tensor}")
        if isinstance(said, Mapping):
            said = {pattern: _wide(one) for pattern, one in said.items()}
        limit = 1.0 if full_scale == "layer_max" else math.inf
        of = {name: _checked(one, limit, name) for name, one in of_each_array(said, arrays).items()}
        if has_weights(said) and any(isinstance(one, Tolerance) for one in of.values()):
            raise ValueError("thg: tensors with a number for each weight and tables cannot be mixed")
        said = said if isinstance(said, Tolerance | Mapping) else float(said)
        largest = [*map(mapping.largest, of.values()), *(_largest_when_stuck(*one, of) for one in stuck.items())]
        return cls(said, of, mapping, weight_bits, stuck, max(largest), limit)

    @property
    def have_one_bound(self) -> bool:
        """Whether each weight deviates by th_g at most, up and down, whatever its value and its array."""
        return isinstance(self.said, float) and self.mapping.is_simple and not self.stuck

    @property
    def depend_on_conductance(self) -> bool:
        """Whether a weight's value matters to how far it may deviate."""
        return self.mapping.cut_off or any(isinstance(one, Tolerance) for one in self.of.values())

    def check_shapes(self, weights: Mapping[str, Tensor]) -> None:
        """Make sure that what is said of single weights fits them.

        Raises:
            ValueError: it does not.
        """
        for name, weight in weights.items():
            if isinstance(thg := self.of[name], Tensor) and thg.shape not in (weight.shape, ()):
                raise ValueError(f"thg: {name} has the shape {tuple(weight.shape)}, not {tuple(thg.shape)}")
            if name in self.stuck and self.stuck[name].shape != weight.shape:
                raise ValueError(
                    f"stuck: {name} has the shape {tuple(weight.shape)}, not {tuple(self.stuck[name].shape)}"
                )

    def scaled_to(self, largest: float) -> Devices:
        """All tolerances times one factor, so that the largest deviation is another.

        Raises:
            ValueError: it, or a device's deviation, is out of range; nothing deviates that could be scaled; or
                weights may be stuck.
        """
        _checked(largest, self.mapping.largest(self.limit), "")
        if self.stuck:
            raise ValueError(
                f"thg={largest}: where weights may be stuck, tolerances are not scaled; set crossbar.thg"
            )
        if not self.largest:
            raise ValueError(f"thg={largest}: a tolerance of 0 at all conductances cannot be scaled to it")
        factor = largest / self.largest
        widest = max((one.largest for one in self.of.values() if isinstance(one, Tolerance)), default=0.0)
        if factor * widest > 1:
            raise ValueError(
                f"thg={largest:g}: must be at most {self.largest / widest:g}, at which a device deviates by its "
                "largest conductance"
            )

        def scaled(one: float | Tolerance | Tensor) -> float | Tolerance | Tensor:
            return one.scaled(factor) if isinstance(one, Tolerance) else one * factor

        said = self.said
        if isinstance(said, Mapping):  # those that no array takes might not be scaled so far
            taken = set(pattern_of_each_array(said, self.of).values())
            said = {pattern: scaled(one) for pattern, one in said.items() if pattern in taken}
        else:
            said = scaled(said)  # type: ignore[assignment]
        return replace(
            self,
            said=said,
            of={name: scaled(one) for name, one in self.of.items()},
            largest=float(largest),
        )

    def box(self, weights: dict[str, Tensor], scales: Scales) -> Box:
        """All deviations that they let pass.

        Raises:
            ValueError: a tolerance depends on the conductance, and a weight is larger than the largest.
        """
        if self.have_one_bound:
            return Box.symmetric(self.largest, scales, weights)
        ends = {}
        for name, relative in self._relative(weights, scales):
            low, high = self.mapping.ends(relative, self.of[name], self.weight_bits)
            if name in self.stuck:
                low, high = _including(self.stuck[name].to(relative) - relative, low, high)
            ends[name] = (low.clamp(min=-self.largest), high.clamp(max=self.largest))  # rounding may lead beyond
        return Box.between(ends, scales, weights)

    def sigma(self, weights: Mapping[str, Tensor], scales: Scales) -> dict[str, Tensor]:
        """The standard deviation of each weight's programming error, in weight units; see `Crossbar.sigma`."""
        return {
            name: scales[name] * self.mapping.sigma(relative, self.of[name], self.weight_bits)
            for name, relative in self._relative(weights, scales)
        }

    def each(
        self, weights: dict[str, Tensor], scales: Scales, sigma: float | None = None
    ) -> list[tuple[Box, dict[str, Tensor]]]:
        """The box and the standard deviation of each device of a weight, sound ones; see `Crossbar.devices`."""
        ends: list[dict[str, tuple[Tensor, Tensor]]] = []
        sigmas: list[dict[str, Tensor]] = []
        for name, relative in self._relative(weights, scales):
            for i, device in enumerate(self.mapping.devices(relative, self.of[name], self.weight_bits)):
                if i == len(ends):
                    ends.append({})
                    sigmas.append({})
                ends[i][name] = (device.low, device.high)
                sigmas[i][name] = scales[name] * (device.sigma if sigma is None else device.share * sigma)
        return [(Box.between(e, scales, weights), s) for e, s in zip(ends, sigmas, strict=True)]

    def _relative(self, weights: Mapping[str, Tensor], scales: Scales) -> Iterator[tuple[str, Tensor]]:
        """The weights in units of their full scale, in float64; one for all, where their value does not matter."""
        for name, tolerance in self.of.items():
            one_for_all = not isinstance(tolerance, Tolerance) and not self.mapping.cut_off
            if one_for_all and name not in self.stuck:
                yield name, torch.ones_like(scales[name])
                continue
            relative = torch.where(scales[name] > 0, in_float64(weights[name]) / scales[name], 0.0)
            if bool((relative.abs() > 1).any()):
                raise ValueError(
                    f"{name}: a weight is above 1, the largest conductance of full_scale=unit; layer_max takes any"
                )
            yield name, relative


def _including(deviation: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The ends, moved where it is not NaN so that they include a deviation."""
    sound = deviation.isnan()
    return (
        torch.where(sound, low, torch.minimum(low, deviation)),
        torch.where(sound, high, torch.maximum(high, deviation)),
    )


def _largest_when_stuck(name: str, stuck: Tensor, arrays: Iterable[str]) -> float:
    """How far a weight can be from where it is stuck."""
    if name not in arrays:
        raise ValueError(f"stuck: no array is named {name!r}; there are {', '.join(arrays)}")
    if not isinstance(stuck, Tensor):
        raise ValueError(f"stuck: {name} must have a tensor of the weight's shape, NaN for sound weights")
    values = stuck[~stuck.isnan()]
    if not bool((values.abs() <= 1).all()):
        raise ValueError(
            f"stuck: values of {name} must be -1..1, in units of the full scale, or NaN for sound ones"
        )
    return 1 + values.abs().amax().item() if len(values) else 0.0


def _check(mapping: DeviceMapping, full_scale: str, weight_bits: int | None) -> None:
    if mapping.device_bits is None:
        return
    if weight_bits is None or full_scale != "layer_max":
        raise ValueError(
            f"device_bits={mapping.device_bits}: needs weight_bits, which it divides, and full_scale=layer_max"
        )
    device_weights(weight_bits, mapping.device_bits)  # raises where they do not fit


def _wide(tolerance: float | Tolerance | Tensor) -> float | Tolerance | Tensor:
    """Numbers of single weights in float64: scaled in fewer bits they would be rounded, and the box with them."""
    is_numbers = isinstance(tolerance, Tensor) and tolerance.is_floating_point()
    return in_float64(tolerance.detach()) if is_numbers else tolerance  # type: ignore[union-attr]


def _checked(tolerance: float | Tolerance | Tensor, limit: float, name: str) -> float | Tolerance | Tensor:
    if isinstance(tolerance, Tolerance):
        return tolerance
    if isinstance(tolerance, bool) or not isinstance(tolerance, Real | Tensor):
        if hasattr(tolerance, "shape"):
            raise ValueError(f"thg of {name} is a {type(tolerance).__name__}; give torch.as_tensor() of it")
        raise ValueError(
            f"thg={tolerance!r}: must be a number or a Tolerance, or these by patterns of names; "
            "Tolerance.from_csv(FILE) and load_tolerances(FILE) read them"
        )
    finite = math.isfinite(limit)
    allowed = f"0 <= thg <= {limit:g} (a fraction of the full scale)" if finite else "finite, 0 or more"
    if isinstance(tolerance, Tensor):
        fine = tolerance.isfinite() & (tolerance >= 0) & (tolerance <= limit)
        if not tolerance.is_floating_point() or not bool(fine.all()) or not tolerance.numel():
            raise ValueError(f"thg of {name}: each number must be {allowed}, one for each weight, as floats")
        return tolerance
    if not (0 <= tolerance <= limit and math.isfinite(tolerance)):
        raise ValueError(f"thg={tolerance}: must be {allowed}")
    return float(tolerance)
