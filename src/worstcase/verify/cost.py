"""What write-verify costs: pulses, time and energy for a bound th_g."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.write_verify import device_weights

MOST = 10**6
"""Pulses of a device on average, at most."""


@dataclass(frozen=True)
class Programming:
    """How weights are programmed: on which devices, and what a pulse takes.

    Args:
        sigma: standard deviation of a device after one pulse, in levels of the device, above 0.
        weight_bits: M, of a weight.
        device_bits: K, of a device; a weight has M / K devices.
        pulse_seconds: the duration of a pulse; None: not known.
        read_seconds: of the read after each pulse.
        pulse_joules: the energy of a pulse with its read; None: not known.
        parallel: devices that are programmed at the same time, 1 or more.

    Raises:
        ValueError: a setting out of range.
    """

    sigma: float = 0.1
    weight_bits: int = 4
    device_bits: int = 2
    pulse_seconds: float | None = None
    read_seconds: float = 0.0
    pulse_joules: float | None = None
    parallel: int = 1

    def __post_init__(self) -> None:
        number("sigma", self.sigma, above=0, also="in levels of a device")
        device_weights(self.weight_bits, self.device_bits)  # checks both
        for name in ("pulse_seconds", "pulse_joules"):
            if (value := getattr(self, name)) is not None:
                number(name, value, low=0)
        number("read_seconds", self.read_seconds, low=0)
        number("parallel", self.parallel, low=1)

    @classmethod
    def of(cls, crossbar: Crossbar, said: Programming | None = None) -> Programming:
        """That of a network's weights, with its own bits; where it has none, with those of the paper's example.

        Args:
            crossbar: the network.
            said: what it should be; None: the paper's example but for the bits.

        Raises:
            ValueError: the bits do not divide, or what was said has others than the crossbar.

        Example:
            >>> from worstcase import Crossbar, DeviceMapping
            >>> net = torch.nn.Linear(2, 1)
            >>> Programming.of(Crossbar(net, 0.1, weight_bits=8, mapping=DeviceMapping(device_bits=1))).devices
            8
        """
        mapped = crossbar.mapping.device_bits
        if said is None:
            return cls(weight_bits=crossbar.weight_bits or cls.weight_bits, device_bits=mapped or cls.device_bits)
        if not isinstance(said, Programming):
            raise ValueError(f"programming={said!r}: must be a Programming, or None")
        weight_bits, device_bits = crossbar.weight_bits or said.weight_bits, mapped or said.device_bits
        if (said.weight_bits, said.device_bits) != (weight_bits, device_bits):
            raise ValueError(
                f"programming: has {said.weight_bits} bits a weight and {said.device_bits} a device, but the "
                f"crossbar has {weight_bits} and {device_bits}; say these"
            )
        return said

    @property
    def devices(self) -> int:
        """Devices of a weight, M / K."""
        return self.weight_bits // self.device_bits

    @property
    def sigmas_of_full_scale(self) -> float:
        """How many sigma the largest weight is: th_g times this is what a device is verified to, in sigma.

        By Eq. 4, th_g = th x (sum of 2^(i K)) / (2^M - 1) for th in levels of a device.
        """
        levels = (2**self.weight_bits - 1) / sum(device_weights(self.weight_bits, self.device_bits))
        return levels / self.sigma

    def pulses(self, thg: Tensor | float) -> Tensor:
        """Pulses that a weight takes on average until all its devices are within its bound.

        Each pulse draws a device's deviation anew, so that a device takes 1 / erf(t / sqrt 2) of them, for a
        tolerance of t sigma.

        Args:
            thg: th_g of each weight in units of the full scale, of any shape, 0 or more.

        Returns:
            Of the same shape, in float64; infinite where th_g is 0.

        Example:
            >>> round(Programming(sigma=0.1, weight_bits=4, device_bits=2).pulses(0.02).item(), 2)
            4.43
        """
        t = torch.as_tensor(thg, dtype=torch.double) * self.sigmas_of_full_scale
        return self.devices / torch.special.erf(t / math.sqrt(2))

    def bound_of(self, pulses: float) -> float:
        """The th_g that takes so many pulses a weight on average: the inverse of `pulses`.

        Raises:
            ValueError: fewer pulses than a weight has devices, or more than `MOST` for each.
        """
        also = f"a weight: each of {self.devices} devices takes one or more, and {MOST:,} at most"
        number("pulses", pulses, above=self.devices, high=MOST * self.devices, also=also)
        share = torch.tensor(self.devices / pulses, dtype=torch.double)
        return (torch.special.erfinv(share) * math.sqrt(2)).item() / self.sigmas_of_full_scale

    def seconds(self, pulses: float) -> float | None:
        """The time that so many pulses in all take; None if that of a pulse is not known."""
        if self.pulse_seconds is None:
            return None
        return pulses * (self.pulse_seconds + self.read_seconds) / self.parallel

    def joules(self, pulses: float) -> float | None:
        """The energy of so many pulses; None if that of a pulse is not known."""
        return None if self.pulse_joules is None else pulses * self.pulse_joules
