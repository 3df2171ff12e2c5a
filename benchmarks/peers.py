"""Beside other tools: chips a second, steps of noise-aware training, and the paper's attacks written down plainly.

    pip install -e '.[bench]'    # aihwkit, aihwkit-lightning; what is not installed is skipped with a line
    OMP_NUM_THREADS=1 python -m benchmarks.peers [--network lenet resnet20] [--crosssim FOLDER] [--seconds 5]

All see the same network, images, batches and threads, and take turns. Times are medians of processor seconds, so
that others on the machine do not count. A chip is drawn and scored over 1,000 images. What they draw differs: ours
and the plain loop a truncated normal in the box, aihwkit its model of PCM, aihwkit-lightning a normal, drawn anew
in each batch, CrossSim a normal. The attacks are compared by the time until they are at the lowest accuracy
that the plain one finds, on a network that is trained for it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import plainly
from examples.resnet20 import resnet20
from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, MonteCarlo
from worstcase.data import MNIST5k
from worstcase.methods import VariationAware
from worstcase.models import LeNet

THG, BATCH, IMAGES, CHIPS = 0.03, 100, 1000, 4
NETWORKS = {"lenet": (LeNet, (1, 28, 28)), "resnet20": (resnet20, (3, 32, 32))}
Batches = list[tuple[Tensor, Tensor]]
Work = tuple[Callable[[Batches], object], Callable[[Tensor, Tensor], object]]
"""Draws and scores `CHIPS` chips; makes a training step."""


def ours(net: nn.Module) -> Work:
    crossbar = Crossbar(net, THG)
    module = VariationAware(crossbar, num_classes=10)
    module.draws = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), 1e-4)
    few, many = MonteCarlo(instances=1), MonteCarlo(instances=1 + CHIPS)

    def chips(batches: Batches) -> float:
        """Beside the scores of the clean and of the worst chip, which every attack makes."""
        started = time.process_time()
        few(crossbar, batches, progress=False)
        both = time.process_time() - started
        many(crossbar, batches, progress=False)
        return time.process_time() - started - 2 * both

    return chips, _step(lambda x, y: module.train().training_loss(x, y), optimiser)


def plain_loop(net: nn.Module) -> Work:
    optimiser = torch.optim.Adam(net.parameters(), 1e-4)

    def noise(weights: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, w in weights.named_parameters():
            if w.ndim > 1:
                end = THG * w.detach().abs().max()
                found[name] = torch.empty_like(w).normal_(0, float(end)).clamp_(-end, end)
        return found

    def chips(batches: Batches) -> None:
        for _ in range(CHIPS):
            chip = copy.deepcopy(net).eval()
            with torch.no_grad():
                for name, d in noise(chip).items():
                    chip.get_parameter(name).add_(d)
            _score(chip, batches)

    def step(x: Tensor, y: Tensor) -> None:
        drawn = noise(net.train())
        with torch.no_grad():
            for name, d in drawn.items():
                net.get_parameter(name).add_(d)
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            for name, d in drawn.items():
                net.get_parameter(name).sub_(d)
        optimiser.step()

    return chips, step


def aihwkit(net: nn.Module) -> Work:
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.optim import AnalogOptimizer
    from aihwkit.simulator.configs import TorchInferenceRPUConfig, WeightModifierType

    config = TorchInferenceRPUConfig()
    config.forward.is_perfect = True  # the input and the output are digital, as with the others
    config.mapping.max_input_size = config.mapping.max_output_size = 0  # one tile a layer
    config.modifier.type, config.modifier.std_dev = WeightModifierType.ADD_NORMAL, THG
    analog = convert_to_analog(net, config)
    optimiser = AnalogOptimizer(torch.optim.Adam, analog.parameters(), lr=1e-4)

    def chips(batches: Batches) -> None:
        for _ in range(CHIPS):
            analog.eval().program_analog_weights()
            _score(analog, batches)

    return chips, _step(lambda x, y: F.cross_entropy(analog.train()(x), y), optimiser)


def aihwkit_lightning(net: nn.Module) -> Work:
    from aihwkit_lightning.nn import AnalogLayerBase
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.optim import AnalogOptimizer
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig, WeightNoiseInjectionType

    config = TorchInferenceRPUConfig()
    config.modifier.noise_type, config.modifier.std_dev = WeightNoiseInjectionType.ADD_NORMAL, THG
    analog = convert_to_analog(net, config)
    optimiser = AnalogOptimizer(torch.optim.Adam, analog.analog_layers, analog.parameters(), lr=1e-4)

    def chips(batches: Batches) -> None:
        analog.eval()
        for module in analog.modules():
            if isinstance(module, AnalogLayerBase):
                module.train()  # it has noise in training alone
        for _ in range(CHIPS):
            _score(analog, batches)

    return chips, _step(lambda x, y: F.cross_entropy(analog.train()(x), y), optimiser)


def crosssim(net: nn.Module) -> Work:
    from simulator import CrossSimParameters
    from simulator.algorithms.dnn.torch.convert import from_torch, synchronize

    parameters = CrossSimParameters()
    parameters.xbar.device.programming_error.enable = True
    parameters.xbar.device.programming_error.model = "NormalIndependentDevice"
    parameters.xbar.device.programming_error.magnitude = THG
    analog = from_torch(net, parameters)
    optimiser = torch.optim.Adam(analog.parameters(), 1e-4)

    def chips(batches: Batches) -> None:
        for _ in range(CHIPS):
            synchronize(analog)  # programs anew
            _score(analog.eval(), batches)

    return chips, _step(lambda x, y: F.cross_entropy(analog.train()(x), y), optimiser)


PEERS = {
    "worstcase": ours,
    "plain loop": plain_loop,
    "aihwkit": aihwkit,
    "aihwkit-lightning": aihwkit_lightning,
    "CrossSim": crosssim,
}


def _step(loss: Callable[[Tensor, Tensor], Tensor], optimiser: torch.optim.Optimizer) -> Callable:
    def step(x: Tensor, y: Tensor) -> None:
        optimiser.zero_grad()
        loss(x, y).backward()
        optimiser.step()

    return step


@torch.no_grad()
def _score(net: nn.Module, batches: Batches) -> float:
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Of a call, or what it says itself."""
    started = time.process_time()
    said = work(*arguments)
    return said if isinstance(said, float) else time.process_time() - started


def compared(name: str, limit: float) -> Iterator[tuple[str, float, float]]:
    """Each peer with the median seconds of a chip and of a training step."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    batches = [(torch.rand(BATCH, *shape), torch.randint(10, (BATCH,))) for _ in range(IMAGES // BATCH)]
    peers: dict[str, Work] = {}
    for peer, work in PEERS.items():
        try:
            peers[peer] = work(copy.deepcopy(net))
            for job, of in zip(peers[peer], ((batches[:1],), batches[0]), strict=True):
                job(*of)  # warms up, and fails if it cannot
        except Exception as error:
            peers.pop(peer, None)
            print(f"{name}: {peer} is skipped: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
    times: dict[str, tuple[list[float], list[float]]] = {peer: ([], []) for peer in peers}
    until = time.monotonic() + limit * len(peers)
    while time.monotonic() < until or not times["worstcase"][1]:
        for peer, (chips, step) in peers.items():
            times[peer][0].append(seconds(chips, batches) / CHIPS)
            times[peer][1].extend(seconds(step, *batch) for batch in batches[:3])
    for peer, (chip, step) in times.items():
        yield peer, statistics.median(chip), statistics.median(step)


def attacks() -> Iterator[tuple[str, float, float, float]]:
    """The paper's attacks plainly and ours: accuracies, seconds of the plain one, ours to reach the same."""
    data = MNIST5k(batch_size=BATCH)
    data.setup()
    torch.manual_seed(0)
    net = LeNet()
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(3):
        for x, y in data.train_dataloader():
            optimiser.zero_grad()
            F.cross_entropy(net.train()(x), y).backward()
            optimiser.step()
    batches, crossbar = list(data.test_dataloader()), Crossbar(net.eval(), THG)
    for name, plain, attack in (("F-LWC", plainly.flwc, FLWC()), ("LWC", plainly.lwc, LWC())):
        started = time.process_time()
        accuracy = plain(net, batches, THG)
        took = time.process_time() - started
        started = time.process_time()
        found = attack(crossbar, batches, progress=False)
        all_of_ours = time.process_time() - started
        passes = next((h["passes"] for h in found.history if h["accuracy"] <= accuracy), None)
        ours_took = float("nan") if passes is None else all_of_ours * passes / found.passes
        yield f"{name}: {accuracy:.1%} plainly, {found.accuracy:.1%} ours", accuracy, took, ours_took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--crosssim", type=Path, help="a checkout of CrossSim 3.2")
    parser.add_argument("--seconds", type=float, default=5, help="for each peer and network (5)")
    arguments = parser.parse_args()
    if arguments.crosssim:
        sys.path.append(str(arguments.crosssim))
    for name in arguments.network:
        table = Table(title=f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        for column in ("", "chips a second", "of ours", "ms a training step", "of ours"):
            table.add_column(column)
        rows = list(compared(name, arguments.seconds))
        _, our_chip, our_step = rows[0]
        for peer, chip, step in rows:
            table.add_row(
                peer, f"{1 / chip:.2f}", f"{our_chip / chip:.2f}", f"{1e3 * step:.1f}", f"{step / our_step:.2f}"
            )
        Console().print(table)
    for what, _, plain, our in attacks():
        print(f"{what}; {plain:.2f} s plainly, {our:.2f} s ours to the same accuracy")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
