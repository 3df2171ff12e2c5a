"""What a pass through the Crossbar costs, relative to the plain network's on the same images.

Forward passes by turns, in processor time; prints the median of the ratios. `perturbed` adds the deviations in
each pass, as gradient attacks do; `one chip` adds them once, as Monte Carlo does.

OMP_NUM_THREADS=1 python -m benchmarks.crossbar
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from examples.resnet20 import resnet20
from worstcase import Crossbar
from worstcase.models import ConvNet, LeNet

NETWORKS = {
    "LeNet": (LeNet, (100, 1, 28, 28)),
    "ConvNet, width 0.25": (lambda: ConvNet(width=0.25), (50, 3, 32, 32)),
    "ResNet-20": (resnet20, (50, 3, 32, 32)),
}
TURNS = 100


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.no_grad()
def main() -> None:
    table = Table(title=f"{torch.get_num_threads()} threads, {torch.__version__}")
    for column in ("network", "plain, ms", "perturbed", "one chip"):
        table.add_column(column)
    for name, (make, shape) in NETWORKS.items():
        net = make().eval()
        crossbar = Crossbar(net, 0.02).eval()
        deviation = crossbar.box.sample("vertex")
        images, chip = crossbar.laid_out(torch.randn(shape)), crossbar.weights(deviation)
        ways = (
            partial(net, images),
            partial(crossbar, images, deviation),
            partial(crossbar.compute, images, chip),
        )
        turns = [[seconds(way) for way in ways] for _ in range(TURNS + 10)][10:]
        ratios = [f"{statistics.median(turn[way] / turn[0] for turn in turns):.3f}" for way in (1, 2)]
        table.add_row(name, f"{1000 * statistics.median(turn[0] for turn in turns):.2f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
