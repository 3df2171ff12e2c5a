"""What attacks, Monte Carlo, training steps and proofs cost on a GPU, in plain passes over the same data.

Called by benchmarks/gpu.sh. Random images, untrained networks: only times matter. Plain passes and the work that
is compared with them take turns. `waits` counts how often a job makes the host wait for the device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg16

from worstcase import Crossbar
from worstcase.attacks import FLWC, MonteCarlo
from worstcase.certificate import Unsupported, certify
from worstcase.methods import PGDAT, SAM, ATrice, UniversalAT, Vanilla, VariationAware
from worstcase.models import ConvNet, LeNet, ResNet18

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {  # and images of a batch
    "LeNet": (LeNet, (1, 28, 28), 1000),
    "ConvNet": (ConvNet, (3, 32, 32), 500),
    "ResNet-18": (ResNet18, (3, 32, 32), 500),
    "VGG-16": (lambda: vgg16(num_classes=10), (3, 64, 64), 128),
}
PRECISIONS = ("float32", "tf32", "bfloat16")
METHODS = {
    "vanilla": Vanilla,
    "va": VariationAware,
    "sam": SAM,
    "atrice": ATrice,
    "universal_at": UniversalAT,
    "pgd_at": PGDAT,
}
BATCHES, TURNS = 4, 3
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense")


@contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Within the block passes are computed so."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    with torch.autocast(device, torch.bfloat16, enabled=name == "bfloat16"):
        yield


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(plain: Callable[[], object], work: Callable[[], object], device: str) -> tuple[float, float]:
    """The median seconds of both, after one turn to warm up."""
    turns = [(seconds(plain, device), seconds(work, device)) for _ in range(TURNS + 1 if device == "cuda" else 2)][
        1:
    ]
    return statistics.median(a for a, _ in turns), statistics.median(b for _, b in turns)


def waits(work: Callable[[], object], device: str) -> int:
    """How often the host waits for the device, or would."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
    counted = {event.key: event.count for event in profile.key_averages()}
    return counted.get(WAITS[0], 0) + counted.get(WAITS[1], 0) if device == "cuda" else counted.get(WAITS[2], 0)


def measured(name: str, kind: str, device: str) -> Iterator[dict[str, Any]]:
    """One row for each job, in units of its plain passes; on the CPU few of them, to try."""
    make, shape, images = NETWORKS[name]
    torch.manual_seed(0)
    net = make().to(device)
    crossbar = Crossbar(net, 0.01).eval()
    size = (images if device == "cuda" else 16, *shape)
    batches = BATCHES if device == "cuda" else 2
    methods = METHODS if device == "cuda" else {name: METHODS[name] for name in ("vanilla", "universal_at")}
    data = [(torch.randn(size, device=device), torch.randint(10, size[:1], device=device)) for _ in range(batches)]

    def forward() -> None:
        with torch.no_grad():
            for x, _ in data:
                net.eval()(x)

    def forward_and_backward() -> None:
        for x, y in data:
            net.zero_grad()
            F.cross_entropy(net.train()(x), y).backward()
        net.eval()

    def row(job: str, passes: float, plain: float, took: float, work: Callable[[], object]) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        return {
            "network": name,
            "precision": kind,
            "job": job,
            "passes": passes,
            "plain_seconds": plain,
            "seconds": took,
            "ratio": took / plain,
            "waits": waits(work, device),
            "peak_in_networks": peak / weights if peak else None,
        }

    one, both = in_turns(forward, forward_and_backward, device)
    attack = FLWC(steps=3)
    found = attack(crossbar, data, progress=False)
    forwards = found.passes - 2 * found.backward_passes
    _reset(device)
    _, took = in_turns(forward, lambda: attack(crossbar, data, progress=False), device)
    plain = forwards * one + found.backward_passes * both
    yield row("flwc", found.passes, plain, took, lambda: attack(crossbar, data, progress=False))

    _reset(device)
    few, many = MonteCarlo(instances=2), MonteCarlo(instances=12)
    _, first = in_turns(forward, lambda: few(crossbar, data, progress=False), device)
    _, rest = in_turns(forward, lambda: many(crossbar, data, progress=False), device)
    yield row("chip of Monte Carlo", 1, one, (rest - first) / 10, lambda: few(crossbar, data, progress=False))

    if kind == "float32":
        _reset(device)
        try:
            plain, took = in_turns(forward, lambda: certify(crossbar, data), device)
            yield row("interval proof", 1, plain, took, lambda: certify(crossbar, data))
        except Unsupported as error:
            print(f"{name}: nothing is proven: {error}")

    step_of_vanilla = None
    for method, kind_of in methods.items():
        _reset(device)
        module = kind_of(crossbar, num_classes=10).to(device)
        module.draws = torch.Generator(device).manual_seed(0)
        optimiser = torch.optim.Adam(net.parameters(), 1e-4)

        def step(module: Any = module, optimiser: Any = optimiser) -> None:
            x, y = data[0]
            optimiser.zero_grad()
            module.train().training_loss(x, y).backward()
            module.on_after_backward()
            optimiser.step()

        _, took = in_turns(forward, step, device)
        step_of_vanilla = step_of_vanilla or took
        yield row(f"step of {method}", 1, step_of_vanilla, took, step)
        crossbar.eval()


def _reset(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def markdown(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [
        machine,
        "",
        "| network | precision | job | plain, ms | times that | waits | memory, networks |",
        "|---" * 7 + "|",
    ]
    for r in rows:
        memory = "-" if r["peak_in_networks"] is None else f"{r['peak_in_networks']:.1f}"
        lines.append(
            f"| {r['network']} | {r['precision']} | {r['job']} | {1e3 * r['plain_seconds']:.2f} "
            f"| {r['ratio']:.2f} | {r['waits']} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tests", default="not run")
    parser.add_argument("--dry-run", action="store_true", help="LeNet on the CPU")
    arguments = parser.parse_args()
    device = "cpu" if arguments.dry_run else "cuda"
    networks, kinds = (["LeNet"], PRECISIONS[::2]) if arguments.dry_run else (list(NETWORKS), PRECISIONS)
    card = "CPU, dry run" if arguments.dry_run else torch.cuda.get_device_name()
    machine = f"{card}, torch {torch.__version__}, tests {arguments.tests}"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name in networks:
        for kind in kinds:
            with precision(kind, device):
                for row in measured(name, kind, device):
                    rows.append(row)
                    found = {"machine": machine, "rows": rows}
                    (arguments.folder / "results.json").write_text(json.dumps(found, indent=1))
                    (arguments.folder / "table.md").write_text(markdown(rows, machine))
    print(markdown(rows, machine))


if __name__ == "__main__":
    main()
