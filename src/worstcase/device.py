"""The bound th_g of common devices, and what write-verify costs to hold it: python -m worstcase.device."""

from __future__ import annotations

import argparse
import sys

import torch

from worstcase.checks import check_seed
from worstcase.chip.write_verify import device_weights, perturbation_bound, write_verify


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=None if sys.argv[0].endswith(" device") else "python -m worstcase.device",
        description="The weight perturbation bound th_g of Eq. 4 and what write-verify costs to hold it.",
    )
    parser.add_argument("--tolerance", type=float, default=0.06, help="th, in levels of a device (0.06)")
    parser.add_argument(
        "--sigma", type=float, default=0.1, help="standard deviation after one pulse, in levels (0.1)"
    )
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[4, 8], metavar="M")
    parser.add_argument("--device-bits", type=int, nargs="+", default=[1, 2, 4], metavar="K")
    parser.add_argument("--max-pulses", type=int, default=1000, help="most pulses of a device (1000)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        check_seed("seed", arguments.seed)
        cells = [(m, k, len(device_weights(m, k))) for m in arguments.weight_bits for k in arguments.device_bits]
        bounds = {(m, k): perturbation_bound(arguments.tolerance, m, k) for m, k, _ in cells}
        generator = torch.Generator().manual_seed(arguments.seed)
        done = write_verify(
            (100_000,), arguments.sigma, arguments.tolerance, max_pulses=arguments.max_pulses, generator=generator
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(
        f"tolerance th = {arguments.tolerance:g} levels of a device, sigma = {arguments.sigma:g} after one pulse"
    )
    print(" bits/weight  bits/device  devices  th_g in levels  thg of full scale  pulses/weight")
    for m, k, devices in cells:
        levels, pulses = bounds[m, k] * (2**m - 1), devices * done.mean_pulses
        print(f"{m:12}{k:13}{devices:9}{levels:16.4g}{bounds[m, k]:19.4g}{pulses:15.3g}")
    print(f"{done.failed:,} of {done.verified.numel():,} devices did not verify in {arguments.max_pulses} pulses")


if __name__ == "__main__":
    main()
