"""Compares the time of a training step of each method with vanilla's.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--model lenet convnet] [--width 1.0] [--rounds 3] [--steps N]

Takes about ten minutes: nearly all for ConvNet, and half of that for `adversarial` (see --methods). A batch is 128
random images; Lightning's trainer runs as in a real training. The methods take turns, so that a machine that is
busy now and then slows all of them. Prints the median over all steps.
"""

import argparse
import logging
import statistics
import time
import warnings
from functools import partial

import lightning as L
import torch
from torch.utils.data import DataLoader

from worstcase import Crossbar
from worstcase.attacks import LWC
from worstcase.methods import PGDAT, Adversarial, ATrice, Trice, UniversalAT, Vanilla, VariationAware
from worstcase.models import ConvNet, LeNet

METHODS = {  # class, and the most that a step may cost relative to vanilla's
    "vanilla": (Vanilla, 1.0),
    "va": (VariationAware, 1.15),
    "trice": (Trice, 1.15),
    "atrice": (ATrice, 2.9),
    "universal_at": (UniversalAT, 2.6),
    "pgd_at": (PGDAT, None),
    "adversarial": (partial(Adversarial, attack=LWC(epochs=10, trials=1)), None),
}
BATCH = 128
WARM_UP = 2
STEPS = {"lenet": 30, "convnet": 4}


class Clock(L.Callback):
    """Measures the seconds of each step, without loading its data."""

    def __init__(self):
        self.seconds = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx >= WARM_UP:
            self.seconds.append(time.perf_counter() - self.started)


def seconds_of_steps(method, net, batches):
    clock = Clock()
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method(Crossbar(net, 0.03), num_classes=10), DataLoader(batches, batch_size=None))
    return clock.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["lenet", "convnet"], choices=["lenet", "convnet"])
    parser.add_argument("--width", type=float, default=1.0, help="width of ConvNet (1.0)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps per round (LeNet 30, ConvNet 4)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for model in arguments.model:
        net, shape = (
            (LeNet, (1, 28, 28)) if model == "lenet" else (partial(ConvNet, width=arguments.width), (3, 32, 32))
        )
        steps = WARM_UP + (arguments.steps or STEPS[model])
        batches = [(torch.rand(BATCH, *shape), torch.randint(10, (BATCH,))) for _ in range(steps)]
        seconds = {name: [] for name in dict.fromkeys(["vanilla", *arguments.methods])}
        for _ in range(arguments.rounds):
            for name, taken in seconds.items():
                taken += seconds_of_steps(METHODS[name][0], net(), batches)
        vanilla = statistics.median(seconds["vanilla"])
        print(f"\n{model}, batch {BATCH}, {torch.get_num_threads()} thread(s)")
        for name, taken in seconds.items():
            median, target = statistics.median(taken), METHODS[name][1]
            aim = f"(at most {target})" if target else ""
            print(f"  {name:13} {1e3 * median:8.1f} ms  {median / vanilla:6.2f} x vanilla {aim}", flush=True)


if __name__ == "__main__":
    main()
