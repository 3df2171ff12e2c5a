"""The bound th_g of devices, what write-verify costs to hold it, and tables: python -m worstcase.device."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from worstcase.checks import check_seed
from worstcase.chip.presets import PRESETS, preset
from worstcase.chip.tolerance import SIGMAS, Tolerance
from worstcase.chip.tolerance_file import load_tolerances
from worstcase.chip.write_verify import device_weights, perturbation_bound, write_verify
from worstcase.text import visible
from worstcase.verify.cost import Programming


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
    parser.add_argument(
        "--table",
        nargs="*",
        metavar="NAME",
        help=f"show tolerances instead: by conductance, CSV files and presets ({', '.join(PRESETS)}; all); of "
        "weights, .safetensors files",
    )
    parser.add_argument(
        "--sigmas", type=float, help=f"standard deviations at which write-verify stops ({SIGMAS:g})"
    )
    arguments = parser.parse_args()
    try:
        if arguments.table is not None:
            for name in arguments.table or PRESETS:
                if name.endswith(".safetensors"):
                    if arguments.sigmas is not None:
                        raise ValueError(f"--sigmas: {name} holds tolerances, no standard deviations")
                    _show_weights(name, arguments)
                else:
                    _show_table(name, arguments.sigmas)
            return
        if arguments.sigmas is not None:
            raise ValueError("--sigmas: needs --table, whose standard deviations it counts")
        check_seed("seed", arguments.seed)
        cells = [(m, k, len(device_weights(m, k))) for m in arguments.weight_bits for k in arguments.device_bits]
        bounds = {(m, k): perturbation_bound(arguments.tolerance, m, k) for m, k, _ in cells}
        generator = torch.Generator().manual_seed(arguments.seed)
        done = write_verify(
            (100_000,), arguments.sigma, arguments.tolerance, max_pulses=arguments.max_pulses, generator=generator
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"tolerance th = {arguments.tolerance:g} levels of a device, sigma = {arguments.sigma:g} after one pulse"
    )
    print(" bits/weight  bits/device  devices  th_g in levels  thg of full scale  pulses/weight")
    for m, k, devices in cells:
        levels, pulses = bounds[m, k] * (2**m - 1), devices * done.mean_pulses
        print(f"{m:12}{k:13}{devices:9}{levels:16.4g}{bounds[m, k]:19.4g}{pulses:15.3g}")
    print(f"{done.failed:,} of {done.verified.numel():,} devices did not verify in {arguments.max_pulses} pulses")


def _show_weights(name: str, arguments: argparse.Namespace) -> None:
    """th_g of each array in a file, and the pulses that a weight takes on average."""
    tolerances = {array: torch.as_tensor(one) for array, one in load_tolerances(name).items()}
    ways = [
        Programming(sigma=arguments.sigma, weight_bits=m, device_bits=k)
        for m in arguments.weight_bits
        for k in arguments.device_bits
    ]
    tolerances = {visible(array): thg for array, thg in tolerances.items()}
    width = max(map(len, tolerances))
    heads = [f"{way.weight_bits}/{way.device_bits}" for way in ways]
    print(f"{name}\nsigma = {arguments.sigma:g} levels of a device after one pulse")
    print(f"{'':{width + 16}}thg of full scale        pulses/weight, by bits/weight and bits/device")
    head = ("weights", "least", "mean", "largest", *heads)
    print(f"{'array':{width}}" + "".join(f"{one:>10}" for one in head))
    for array, thg in tolerances.items():
        weights = f"{thg.numel():,}" if thg.ndim else "all"
        ends = "".join(f"{x.item():10.3g}" for x in (thg.amin(), thg.double().mean(), thg.amax()))
        pulses = "".join(f"{way.pulses(thg).mean().item():10.3g}" for way in ways)
        print(f"{array:{width}}{weights:>10}{ends}{pulses}")


def _show_table(name: str, sigmas: float | None) -> None:
    """A tolerance by conductance, in percent of the largest."""
    if Path(name).suffix == ".csv":
        table, source = Tolerance.from_csv(name, sigmas=sigmas), ""
    else:
        table, source = Tolerance.preset(name, sigmas=sigmas), f"{preset(name).device}\n{preset(name).source}\n"
    print(f"{name}\n{source}percent of the largest conductance")
    print(" conductance   sigma   lower   upper")
    sigma = [math.nan] * len(table.conductance) if table.sigma is None else table.sigma
    for row in zip(table.conductance, sigma, table.lower, table.upper, strict=True):
        g, *rest = (100 * value for value in row)
        print(f"{g:12.4g}" + "".join("       -" if math.isnan(value) else f"{value:8.2f}" for value in rest))
    if table.sigma is not None:
        k = SIGMAS if sigmas is None else sigmas
        print(f"write-verify stops at {k:g} sigma: {math.erf(k / math.sqrt(2)):.1%} of devices pass at once")
    print(f"no device deviates by more than {table.largest:.4g} of the largest conductance\n")


if __name__ == "__main__":
    main()
