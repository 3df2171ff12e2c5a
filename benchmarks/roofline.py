"""What bounds the five main jobs on this processor: products, memory, or what does not depend on the images.

    OMP_NUM_THREADS=1 python -m benchmarks.roofline [--network lenet convnet resnet20] [--batch 128]

Prints for each job the processor's time for a batch; the least time that its floating point operations take at the
peak, which is measured by a product of large matrices; the least time that reading the operands and writing the
results of every operation takes at the rate of a ReLU over 2 MiB, which fit in the cache; and the time of a batch
of two images, in which nearly all is Python, dispatch, and work on weights. `times` is the job's time in units of
the largest of these three, which is said to bound it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from examples.resnet20 import resnet20
from worstcase import Crossbar
from worstcase.attacks.gradient import gradient
from worstcase.certificate import certify
from worstcase.methods import UniversalAT
from worstcase.models import ConvNet, LeNet
from worstcase.objectives import margin

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (LeNet, (1, 28, 28)),
    "convnet": (partial(ConvNet, width=0.25), (3, 32, 32)),
    "resnet20": (resnet20, (3, 32, 32)),
}
ROUNDS = 5


class Counted(TorchDispatchMode):
    """Counts floating point operations of products, and the bytes that all operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        if not func.is_view:
            moved = tree_leaves((args, kwargs or {}, out))
            self.bytes += sum(t.numel() * t.element_size() for t in moved if isinstance(t, Tensor))
        return out


def seconds(work: Callable[[], object]) -> float:
    """The median of some calls, in processor seconds, after one that warms up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def peaks() -> tuple[float, float]:
    """Floating point operations, and bytes, a second."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    x, y = torch.rand(2**19), torch.empty(2**19)
    many = 200

    def relu() -> None:
        for _ in range(many):
            torch.clamp_min(x, 0.5, out=y)

    return 2 * 1024**3 / seconds(lambda: a @ b), many * 2 * x.nbytes / seconds(relu)


def jobs(name: str, batch: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The main jobs on a batch of random images."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    crossbar = Crossbar(net, 0.01)
    x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
    module = UniversalAT(crossbar, num_classes=10)
    module.draws = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4)

    def training() -> None:
        optimiser.zero_grad()
        module.train().training_loss(x, y).backward()
        module.on_after_backward()
        optimiser.step()

    yield "training step, universal_at", training
    crossbar.eval()
    box = crossbar.box
    zero = box.zero()
    yield "attack, a gradient", lambda: gradient(crossbar, margin, zero, x, y)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def chip() -> None:
        crossbar(x, box.sample("truncated_gaussian", generator))

    yield "Monte Carlo, a chip", chip
    yield "proof by intervals", lambda: certify(crossbar, [(x, y)])
    if name == "lenet":
        yield "proof by linear bounds", lambda: certify(crossbar, [(x, y)], "linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    flops, rate = peaks()
    said = f"peak {flops / 1e9:.0f} GFLOP/s, {rate / 1e9:.1f} GB/s, {torch.get_num_threads()} threads"
    table = Table(title=f"{said}, torch {torch.__version__}, batches of {arguments.batch}")
    for column in ("network", "job", "ms", "operations", "memory", "two images", "bound by", "times"):
        table.add_column(column)
    for name in arguments.network:
        for (job, work), (_, small) in zip(jobs(name, arguments.batch), jobs(name, 2), strict=True):
            took, fixed = seconds(work), seconds(small)
            with Counted() as counted:
                work()
            floors = {
                "operations": counted.flops / flops,
                "memory": counted.bytes / rate,
                "two images": fixed,
            }
            bound = max(floors, key=lambda key: floors[key])
            numbers = [f"{1e3 * value:.1f}" for value in (took, *floors.values())]
            table.add_row(name, job, *numbers, bound, f"{took / floors[bound]:.1f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
