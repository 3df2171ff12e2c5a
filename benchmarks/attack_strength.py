"""Compares what attacks find for the same passes, on trained networks: a table, a picture, and their numbers.

Runs each attack, and the ensemble with several seeds, on the test set of each run's folder. FILE.csv holds the
lowest accuracy after so many passes, a row for each improvement; FILE.svg shows it. --before draws the ensemble of
another version beside it, from the csv that this command wrote there.

python -m src.train method=vanilla dataset=mnist trainer.max_epochs=4 hydra.run.dir=vanilla
python benchmarks/attack_strength.py vanilla --to docs/attack_strength
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from rich.console import Console
from rich.table import Table

from worstcase import load_run
from worstcase.attacks import FLWC, LWC, PGD, Ensemble
from worstcase.attacks.base import Attack

SINGLE = {"flwc": FLWC, "lwc": LWC, "pgd": PGD}
SHOWN = 15  # points above the lowest
COLOURS = {"ensemble before": "tab:grey", "flwc": "tab:green", "lwc": "tab:orange", "pgd": "tab:red"}


def found(network: str, folder: Path, label: str, attack: Attack, seed: int) -> pd.DataFrame:
    """The lowest accuracy after so many passes, a row for each improvement and one for the end."""
    run = load_run(folder)
    run.datamodule.prepare_data()
    result = attack(run.crossbar, list(run.datamodule.test_dataloader()), seed=seed, progress=False)
    trace = pd.DataFrame(result.history)[["passes", "accuracy"]]
    trace["accuracy"] = trace["accuracy"].cummin()
    trace = trace[~trace["accuracy"].duplicated() | (trace.index == len(trace) - 1)]
    return trace.assign(network=network, attack=label, seed=seed, seconds=result.seconds)


def table(numbers: pd.DataFrame) -> Table:
    lowest = numbers.groupby(["network", "attack", "seed"], sort=False)[["accuracy", "passes", "seconds"]].agg(
        {"accuracy": "min", "passes": "max", "seconds": "max"}
    )
    shown = Table("network", "attack", "passes", "seconds", "lowest accuracy %", "spread", title="over the seeds")
    for (network, attack), rows in lowest.groupby(level=[0, 1], sort=False):
        percent = 100 * rows["accuracy"]
        shown.add_row(
            str(network),
            str(attack),
            f"{rows['passes'].max():.0f}",
            f"{rows['seconds'].mean():.0f}",
            f"{percent.mean():.2f}",
            f"{percent.min():.2f} to {percent.max():.2f}",
        )
    return shown


def picture(numbers: pd.DataFrame, file: Path) -> None:
    networks = list(numbers["network"].unique())
    figure, axes = plt.subplots(
        1, len(networks), figsize=(3.2 * len(networks), 3), squeeze=False, layout="constrained"
    )
    for axis, network in zip(axes[0], networks, strict=True):
        of_network = numbers[numbers["network"] == network]
        for (attack, seed), rows in of_network.groupby(["attack", "seed"]):
            axis.step(
                rows["passes"],
                100 * rows["accuracy"],
                where="post",
                color=COLOURS.get(str(attack), "tab:blue"),
                label=str(attack) if seed == 0 else None,
            )
        lowest, clean = 100 * of_network["accuracy"].min(), 100 * of_network["accuracy"].max()
        shown = min(clean, lowest + SHOWN)
        axis.set(title=network, xlabel="passes", xscale="log", ylim=(lowest - 0.05 * (shown - lowest), shown))
    axes[0][0].set_ylabel("lowest accuracy found, %")
    handles = {
        label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    plt.rcParams["svg.hashsalt"] = "attack_strength"  # the same file from the same numbers
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="folders of trainings, whose names name the networks")
    parser.add_argument("--to", type=Path, default=Path("attack_strength"), help="FILE, without an ending")
    parser.add_argument("--budget", type=float, help="passes of the ensemble, at most; else two rounds")
    parser.add_argument("--seeds", type=int, default=3, help="of the ensemble")
    parser.add_argument("--before", type=Path, help="csv of another version; its ensemble is drawn too")
    arguments = parser.parse_args()
    arguments.to.parent.mkdir(parents=True, exist_ok=True)

    parts = []
    if arguments.before:
        before = pd.read_csv(arguments.before)
        parts.append(before[before["attack"] == "ensemble"].assign(attack="ensemble before"))
    for folder in arguments.runs:
        for label, attack in SINGLE.items():
            parts.append(found(folder.name, folder, label, attack(), 0))
        for seed in range(arguments.seeds):
            parts.append(found(folder.name, folder, "ensemble", Ensemble(budget=arguments.budget), seed))
    numbers = pd.concat(parts, ignore_index=True)
    numbers.to_csv(arguments.to.with_suffix(".csv"), index=False)
    picture(numbers, arguments.to.with_suffix(".svg"))
    Console(width=120).print(table(numbers))


if __name__ == "__main__":
    main()
