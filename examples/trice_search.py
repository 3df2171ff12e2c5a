"""TRICE's search for sigma_t: trains networks at three points of an interval that shrinks around the best.

    python examples/trice_search.py multirun/trice_search dataset=mnist data_dir=FOLDER trainer.max_epochs=5

Arguments after the folder are settings of src.train. The best network is the one with the highest k-th percentile
performance (KPP): the k-quantile of its accuracies on the validation split when its weights vary at random. The
next round starts from its weights, with half the interval, around its sigma_t. To resume a search that was killed,
repeat the command: finished trainings are skipped.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from worstcase import load_run
from worstcase.chip.noise import gaussian
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import CHECKPOINT
from worstcase.seeds import seeded


def quartile_points(low, high):
    return [low + (high - low) * share for share in (0.25, 0.5, 0.75)]


def shrunk(low, high, best):
    """Half the interval, around the best point and within the interval."""
    half = (high - low) / 2
    start = min(max(best - half / 2, low), high - half)
    return start, start + half


@torch.no_grad()
def kpp(crossbar, loader, *, variation, k, instances, seed=0):
    """The k-quantile of the accuracies (0..1) of random instances; variation is in units of the full scale."""
    sigma = {name: variation * scale for name, scale in crossbar.full_scales().items()}
    accuracies = []
    for i in range(instances):
        noise = gaussian(crossbar.programmed(), sigma, seeded(seed, i))
        right = [(crossbar(images, noise).argmax(1) == labels).float() for images, labels in loader]
        accuracies.append(torch.cat(right).mean())
    return torch.stack(accuracies).quantile(k).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--interval", type=float, nargs=2, default=[0.0, 0.4], help="of sigma_t, in units of the full scale"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--variation", type=float, default=0.1, help="sigma of the instances, in full scales")
    parser.add_argument("--k", type=float, default=0.01, help="the quantile, 0..1")
    parser.add_argument("--instances", type=int, default=100)
    arguments, settings = parser.parse_known_args()
    low, high = arguments.interval
    for number in range(1, arguments.rounds + 1):
        folder = arguments.folder / f"round{number}"
        sigmas = ",".join(f"{sigma:.6g}" for sigma in quartile_points(low, high))
        train = [sys.executable, "-m", "src.train", "-m", "method=trice", *settings, f"method.sigma={sigmas}"]
        subprocess.run([*train, f"hydra.sweep.dir={folder}"], check=True)
        found = {}
        finished = list(finished_runs([folder]))
        if len(finished) != 3:
            sys.exit(f"{folder} holds {len(finished)} trainings, not the 3 of this search; choose another folder")
        for path, record in finished:
            run = load_run(path)
            loader = list(run.datamodule.val_dataloader())
            score = kpp(
                run.crossbar, loader, variation=arguments.variation, k=arguments.k, instances=arguments.instances
            )
            found[path] = (score, record.config["method"]["sigma"])
            print(f"round {number}: sigma_t {found[path][1]:.4f}, KPP {score:.2%}", flush=True)
        best = max(found, key=found.get)
        low, high = shrunk(low, high, found[best][1])
        settings = [s for s in settings if not s.startswith("init_from=")] + [f"init_from={best / CHECKPOINT}"]
    print(f"best: method=trice method.sigma={found[best][1]:.6g}, in {best}")


if __name__ == "__main__":
    main()
