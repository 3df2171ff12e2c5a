"""From devices to weights: bits on devices, write-verify, and the weight perturbation bound (Eq. 1-4).

``python -m worstcase.device`` prints the bound for usual numbers of bits.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def device_weights(weight_bits: int, device_bits: int) -> list[int]:
    """2^(i K) for each of the M / K devices of a weight, the least significant first (Eq. 4).

    Args:
        weight_bits: M, 1 or more.
        device_bits: K, 1 or more; M must be divisible by it.

    Raises:
        ValueError: out of range, or not divisible.

    Example:
        >>> device_weights(weight_bits=8, device_bits=2)
        [1, 4, 16, 64]
    """
    if weight_bits < 1 or device_bits < 1:
        raise ValueError(f"weight_bits={weight_bits}, device_bits={device_bits}: must be 1 or more")
    if weight_bits % device_bits:
        raise ValueError(f"weight_bits={weight_bits} is not divisible by device_bits={device_bits}")
    return [2**power for power in range(0, weight_bits, device_bits)]


def conductances(levels: Tensor, weight_bits: int, device_bits: int) -> Tensor:
    """The intended conductance g_i of each device of a weight (Eq. 1 and 2), in level units.

    Args:
        levels: desired weights as whole numbers 0 .. 2^M - 1, any shape; the sign is kept apart from the bits.
        weight_bits: M.
        device_bits: K.

    Returns:
        Whole numbers 0 .. 2^K - 1, of shape (M / K, *levels.shape), the least significant device first.

    Example:
        >>> conductances(torch.tensor([11]), weight_bits=4, device_bits=2).tolist()
        [[3], [2]]
    """
    if (levels < 0).any() or (levels >= 2**weight_bits).any():
        raise ValueError(f"levels must be 0 to {2**weight_bits - 1} for {weight_bits} bits")
    return torch.stack([levels // weight % 2**device_bits for weight in device_weights(weight_bits, device_bits)])


def weight_of(devices: Tensor, weight_bits: int, device_bits: int) -> Tensor:
    """The weight that devices hold together: the sum of 2^(i K) g_i, of conductances or deviations (Eq. 4).

    Args:
        devices: (M / K, *shape), the least significant first, in level units.
        weight_bits: M.
        device_bits: K.
    """
    weights = torch.tensor(device_weights(weight_bits, device_bits), dtype=devices.dtype, device=devices.device)
    return torch.tensordot(weights, devices, dims=1)


def perturbation_bound(tolerance: float, weight_bits: int, device_bits: int, *, normalised: bool = True) -> float:
    """The weight perturbation bound th_g: the sum of th x 2^(i K) over a weight's devices (Eq. 4).

    Args:
        tolerance: th, the largest deviation of a device after write-verify, in units of one level of it.
        weight_bits: M.
        device_bits: K.
        normalised: divide by 2^M - 1, the largest weight: th_g as a fraction of the full scale. The paper
            gives 0.03 for th = 0.06; Eq. 4 gives 0.3 (M = 4, K = 2) in level units and 0.02 normalised.

    Example:
        >>> perturbation_bound(0.06, weight_bits=4, device_bits=2)
        0.02
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance}: must be finite, 0 or more")
    bound = tolerance * sum(device_weights(weight_bits, device_bits))
    return bound / (2**weight_bits - 1) if normalised else bound


@dataclass(frozen=True)
class Programmed:
    """What write-verify left."""

    deviation: Tensor
    """Of each device from its target, in level units."""
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
    average if the budget does not matter.

    Args:
        shape: of the devices.
        sigma: standard deviation after one pulse, in level units, 0 or more.
        tolerance: th, in level units, 0 or more.
        max_pulses: the budget of a device, 1 or more.
        generator: draws; None: torch's default.

    Raises:
        ValueError: a setting out of range.

    Example:
        >>> done = write_verify((1000,), sigma=0.1, tolerance=0.06, generator=torch.Generator().manual_seed(0))
        >>> bool(done.deviation.abs().max() <= 0.06), done.failed
        (True, 0)
    """
    for name, value in {"sigma": sigma, "tolerance": tolerance}.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value}: must be finite, 0 or more")
    if max_pulses < 1:
        raise ValueError(f"max_pulses={max_pulses}: must be 1 or more")
    deviation = sigma * torch.randn(shape, generator=generator, dtype=torch.double)
    pulses = torch.ones(shape, dtype=torch.long)
    verified = deviation.abs() <= tolerance
    for _ in range(max_pulses - 1):
        again = ~verified
        count = int(again.sum())
        if not count:
            break
        deviation[again] = sigma * torch.randn(count, generator=generator, dtype=torch.double)
        pulses[again] += 1
        verified = deviation.abs() <= tolerance
    return Programmed(deviation, pulses, verified)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m worstcase.device",
        description="The weight perturbation bound th_g of Eq. 4 and what write-verify costs to hold it.",
    )
    parser.add_argument("--tolerance", type=float, default=0.06, help="th, in levels of a device (0.06)")
    parser.add_argument("--sigma", type=float, default=0.1, help="after one pulse, in levels (0.1)")
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[4, 8], metavar="M")
    parser.add_argument("--device-bits", type=int, nargs="+", default=[1, 2, 4], metavar="K")
    parser.add_argument("--max-pulses", type=int, default=1000, help="budget of a device (1000)")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    try:
        cells = [(m, k, len(device_weights(m, k))) for m in said.weight_bits for k in said.device_bits]
        bounds = {(m, k): perturbation_bound(said.tolerance, m, k) for m, k, _ in cells}
        generator = torch.Generator().manual_seed(said.seed)
        done = write_verify(
            (100_000,), said.sigma, said.tolerance, max_pulses=said.max_pulses, generator=generator
        )
    except ValueError as error:
        parser.error(str(error))
    print(f"tolerance th = {said.tolerance:g} levels of a device, sigma = {said.sigma:g} after one pulse")
    print(" bits/weight  bits/device  devices  th_g in levels  thg of full scale  pulses/weight")
    for m, k, devices in cells:
        levels, pulses = bounds[m, k] * (2**m - 1), devices * done.mean_pulses
        print(f"{m:12}{k:13}{devices:9}{levels:16.4g}{bounds[m, k]:19.4g}{pulses:15.3g}")
    print(f"{done.failed:,} of {done.verified.numel():,} devices did not verify in {said.max_pulses} pulses")


if __name__ == "__main__":
    main()
