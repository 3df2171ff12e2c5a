"""How a weight is held in devices, and what their tolerances make of its box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worstcase.checks import whole
from worstcase.chip.tolerance import Tolerance
from worstcase.chip.write_verify import BITS, device_weights


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
        ValueError: device_bits is out of range.

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
        zero = relative.new_zeros(())
        for share, conductance in self._devices(relative.abs(), weight_bits):
            device_low, device_high = self._device(conductance, tolerance)
            if self.pair:
                unused_low, unused_high = self._device(zero, tolerance)
                device_low, device_high = device_low - unused_high, device_high - unused_low
            low = low + share * device_low
            high = high + share * device_high
        if self.cut_off or not _is_symmetric(tolerance):  # a sign turns the deviation
            negative, zero = relative < 0, relative == 0
            low, high = torch.where(negative, -high, low), torch.where(negative, -low, high)
            if bool(zero.any()):  # it may have either sign
                farther = torch.maximum(high, -low)
                low, high = torch.where(zero, -farther, low), torch.where(zero, farther, high)
        return low.clamp(min=-limit), high.clamp(max=limit)  # rounding may lead beyond

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
        for share, conductance in self._devices(relative.abs(), weight_bits):
            of_devices = [conductance, relative.new_zeros(())] if self.pair else [conductance]
            for g in of_devices:
                if isinstance(tolerance, Tolerance):
                    (sigma,) = _interpolated(g, tolerance.conductance, tolerance.deviation)
                else:
                    sigma = _of_each_weight(tolerance, g)
                variance = variance + (share * sigma).square()
        return variance.sqrt()

    def _devices(self, conductance: Tensor, weight_bits: int | None) -> Iterator[tuple[float, Tensor]]:
        """Each device of a weight: its share of the weight's full scale, and its own relative conductance."""
        if self.device_bits is None or weight_bits is None:
            yield 1.0, conductance
            return
        largest_weight, largest_level = 2**weight_bits - 1, 2**self.device_bits - 1
        levels = (conductance * largest_weight).round()
        for weight in device_weights(weight_bits, self.device_bits):
            digits = (levels / weight).floor() % (largest_level + 1)
            yield weight * largest_level / largest_weight, digits / largest_level

    def _device(self, conductance: Tensor, tolerance: float | Tolerance | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(tolerance, Tolerance):
            low, high = _interpolated(conductance, tolerance.conductance, tolerance.lower, tolerance.upper)
        else:
            high = _of_each_weight(tolerance, conductance)
            low = -high
        if self.cut_off:
            low, high = torch.maximum(low, -conductance), torch.minimum(high, 1 - conductance)
        return low, high


def _of_each_weight(tolerance: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(tolerance, dtype=like.dtype, device=like.device)


def _is_symmetric(tolerance: float | Tolerance | Tensor) -> bool:
    if not isinstance(tolerance, Tolerance):
        return True
    return all(low == -high for low, high in zip(tolerance.lower, tolerance.upper, strict=True))


def _interpolated(x: Tensor, knots: Sequence[float], *columns: Sequence[float]) -> list[Tensor]:
    """Each column at x, linear between knots, and never beyond the values of the two beside."""
    at, *of = (torch.tensor(column, dtype=x.dtype, device=x.device) for column in (knots, *columns))
    left = torch.bucketize(x, at[1:-1], right=True)
    share = (x - at.take(left)) / at.diff().take(left)
    return [torch.lerp(column.take(left), column[1:].take(left), share) for column in of]
