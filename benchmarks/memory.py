"""The peak memory of each job on VGG-16 with batches of two images, in sizes of the network's weights.

    OMP_NUM_THREADS=1 python -m benchmarks.memory

Each job runs in a process of its own; what that holds before the network is built does not count. A training step
holds the network, its gradient, Adam's two moments, and what the method adds.
"""

import multiprocessing
import resource
from collections.abc import Callable
from functools import partial

import torch
from torchvision.models import vgg16

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, Attack, Ensemble, MonteCarlo
from worstcase.certificate import certify
from worstcase.methods import ATrice, UniversalAT, Vanilla

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def attack(of: Attack, crossbar: Crossbar, batches: Batches) -> None:
    of(crossbar, batches, progress=False)


def step(method: Callable, crossbar: Crossbar, batches: Batches) -> None:
    module = method(crossbar, num_classes=10)
    module.draws = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(crossbar.parameters(), 1e-4)
    for images, labels in batches:
        optimiser.zero_grad()
        module.train().training_loss(images, labels).backward()
        module.on_after_backward()
        optimiser.step()


JOBS: dict[str, Callable[[Crossbar, Batches], object]] = {
    "F-LWC": partial(attack, FLWC(steps=2)),
    "LWC": partial(attack, LWC(epochs=1)),
    "ensemble": partial(attack, Ensemble(budget=40)),
    "Monte Carlo": partial(attack, MonteCarlo(instances=2)),
    "proof by intervals": certify,
    "step of vanilla": partial(step, Vanilla),
    "step of atrice": partial(step, ATrice),
    "step of universal_at, two members": partial(step, partial(UniversalAT, members=2)),
}


def peak(name: str) -> None:
    def largest() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    torch.nn.Conv2d(3, 8, 3)(torch.rand(2, 3, 64, 64)).sum().backward()  # loads what computes
    before = largest()
    crossbar = Crossbar(vgg16(num_classes=10), 0.01)
    weights = sum(p.numel() * p.element_size() for p in crossbar.parameters())
    JOBS[name](crossbar.eval(), [(torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))] * 2)
    print(f"{name:34} {(largest() - before) / weights:5.1f}", flush=True)


def main() -> None:
    print("peak memory in sizes of VGG-16's weights (537 MB), the network itself counted")
    for name in JOBS:
        process = multiprocessing.get_context("spawn").Process(target=peak, args=(name,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
