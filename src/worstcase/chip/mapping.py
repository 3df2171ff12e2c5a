"""How a weight is held in devices, and what their tolerances make of its box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worstcase.checks import whole
from worstcase.chip.tolerance import Tolerance
from worstcase.chip.write_verify import BITS, device_weights


class Device(NamedTuple):
    """A device of each weight of an array: what it adds to the weight's deviation, in units of the full scale."""

    low: Tensor
    """The least, before any other device adds to it."""
    high: Tensor
    sigma: Tensor
    """Its standard deviation before write-verify."""
    share: float
    """Its own full scale."""


@dataclass(frozen=True)
class DeviceMapping:
    """The devices of a weight; without settings one device holds its absolute value, and its sign is digital.

    A weight's deviation is the sum of its devices', each within the tolerance of its own conductance.

    Args:
        pair: W = g+ - g-, a differential pair; the device that the sign does not use is at conductance 0, and
            deviates there. A number as tolerance is then each device's: the weight deviates by twice as much.
        device_bits: K, M / K devices of K bits for each weight of M bits (Eq. 1 to 4), a device for some of its
            bits. Each deviates by a fraction of its own largest conductance. None: one device for all bits.
        cut_off: a conductance is never below 0 nor above its largest, so a device's deviations end there.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> from worstcase import Crossbar
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[1.0, -0.25]]))
        >>> box = Crossbar(layer, thg=0.5, mapping=DeviceMapping(cut_off=True)).box
        >>> box.low["weight"], box.high["weight"]
        (tensor([[-0.5000, -0.5000]]), tensor([[0.0000, 0.2500]]))
    """

    pair: bool = False
    device_bits: int | None = None
    cut_off: bool = False

    def __post_init__(self) -> None:
        for name in ("pair", "cut_off"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name}={value!r}: must be True or False")
        if self.device_bits is not None:
            whole("device_bits", self.device_bits, most=BITS, also="or None for one device")

    @property
    def is_simple(self) -> bool:
        """Whether a tolerance that is one number is the bound of the weight, whatever its value."""
        return not self.pair and not self.cut_off

    def largest(self, tolerance: float | Tolerance | Tensor) -> float:
        """The largest deviation that a weight may have, in units of its full scale; cut-offs aside.

        Args:
            tolerance: of its devices; a tensor has a number for each weight.

        Example:
            >>> DeviceMapping(pair=True).largest(0.02)
            0.04
        """
        if not isinstance(tolerance, Tolerance):
            of_device = tolerance.amax().item() if isinstance(tolerance, Tensor) else tolerance
            return 2 * of_device if self.pair else of_device
        low, high = (tolerance.lower[0], tolerance.upper[0]) if self.pair else (0.0, 0.0)  # of the unused device
        return max(max(tolerance.upper) - (0.0 if self.cut_off else low), high - min(tolerance.lower))

    def ends(
        self, relative: Tensor, tolerance: float | Tolerance | Tensor, weight_bits: int | None
    ) -> tuple[Tensor, Tensor]:
        """The least and the greatest deviation of weights, in units of the full scale.

        Args:
            relative: the weights in these units, -1 to 1, in float64.
            tolerance: of their devices; a tensor has a number for each weight.
            weight_bits: M, with device_bits.
        """
        limit = self.largest(tolerance)
        low, high = torch.zeros_like(relative), torch.zeros_like(relative)
        for device in self.devices(relative, tolerance, weight_bits):
            low, high = low + device.low, high + device.high
        if bool((zero := relative == 0).any()):  # it may have either sign
            farther = torch.maximum(high, -low)
            low, high = torch.where(zero, -farther, low), torch.where(zero, farther, high)
        return low.clamp(min=-limit), high.clamp(max=limit)  # rounding may lead beyond

    def devices(
        self, relative: Tensor, tolerance: float | Tolerance | Tensor, weight_bits: int | None
    ) -> Iterator[Device]:
        """Each device of the weights, and what it adds to their deviations; see `ends`. A weight of 0 counts as +.

        Example:
            >>> table = Tolerance([0, 1], [0.0, -0.2], [0.1, 0.3])
            >>> pair = DeviceMapping(pair=True).devices(torch.tensor([1.0, -1.0]), table, None)
            >>> [(device.low.tolist(), device.high.tolist()) for device in pair]  # doctest: +NUMBER
            [([-0.2, -0.3], [0.3, 0.2]), ([-0.1, 0.0], [0.0, 0.1])]
        """
        negative = relative < 0
        for share, conductance in self._devices(relative.abs(), weight_bits):
            low, high, sigma = self._device(conductance, tolerance)
            turned = negative if share > 0 else ~negative
            low, high = abs(share) * low, abs(share) * high
            yield Device(
                torch.where(turned, -high, low), torch.where(turned, -low, high), abs(share) * sigma, abs(share)
            )

    def sigma(self, relative: Tensor, tolerance: float | Tolerance | Tensor, weight_bits: int | None) -> Tensor:
        """The standard deviation of weights whose devices deviate independently, in units of the full scale.

        Args:
            relative: the weights in these units, -1 to 1.
            tolerance: of their devices; one that is a number, or a tensor with one for each weight, is taken as
                the standard deviation.
            weight_bits: M, with device_bits.

        Example:
            >>> DeviceMapping(pair=True).sigma(torch.tensor([0.5, -1.0]), 0.03, None)
            tensor([0.0424, 0.0424])
        """
        variance = torch.zeros_like(relative)
        for device in self.devices(relative, tolerance, weight_bits):
            variance = variance + device.sigma.square()
        return variance.sqrt()

    def _devices(self, conductance: Tensor, weight_bits: int | None) -> Iterator[tuple[float, Tensor]]:
        """Each device of a positive weight: its share of the weight's full scale, below 0 where it is subtracted,
        and its own relative conductance."""
        for share, of_device in self._digits(conductance, weight_bits):
            yield share, of_device
            if self.pair:
                yield -share, torch.zeros_like(of_device)

    def _digits(self, conductance: Tensor, weight_bits: int | None) -> Iterator[tuple[float, Tensor]]:
        if self.device_bits is None or weight_bits is None:
            yield 1.0, conductance
            return
        largest_weight, largest_level = 2**weight_bits - 1, 2**self.device_bits - 1
        levels = (conductance * largest_weight).round()
        for weight in device_weights(weight_bits, self.device_bits):
            digits = (levels / weight).floor() % (largest_level + 1)
            yield weight * largest_level / largest_weight, digits / largest_level

    def _device(self, conductance: Tensor, tolerance: float | Tolerance | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The least and the greatest deviation of a device, and its sigma, in units of its full scale."""
        if isinstance(tolerance, Tolerance):
            columns = (tolerance.lower, tolerance.upper, tolerance.deviation)
            low, high, sigma = _interpolated(conductance, tolerance.conductance, *columns)
        else:
            high = torch.as_tensor(tolerance, dtype=conductance.dtype, device=conductance.device)
            high = high * torch.ones_like(conductance)
            low, sigma = -high, high
        if self.cut_off:
            low, high = torch.maximum(low, -conductance), torch.minimum(high, 1 - conductance)
        return low, high, sigma


def _interpolated(x: Tensor, knots: Sequence[float], *columns: Sequence[float]) -> list[Tensor]:
    """Each column at x, linear between knots, and never beyond the values of the two beside."""
    at, *of = (torch.tensor(column, dtype=x.dtype, device=x.device) for column in (knots, *columns))
    left = torch.bucketize(x, at[1:-1], right=True)
    share = (x - at.take(left)) / at.diff().take(left)
    return [torch.lerp(column.take(left), column[1:].take(left), share) for column in of]
