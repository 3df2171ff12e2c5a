"""How many CPU threads a job computes with: by the size of its network, not by the machine's load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worstcase.chip.crossbar import Crossbar
    from worstcase.data import ImageDataModule

FLOPS_OF_A_THREAD = 40e6
"""Of one sample's forward pass. Below it a second thread waits more than it works once it has company."""
OMP = "OMP_NUM_THREADS"
GIVEN = os.environ.get(OMP, "")
"""What the user says, or in a process of a parallel launcher its share of the cores."""
BY_USER = "WORSTCASE_OMP_NUM_THREADS"
"""Environment variable: what the user says. The processes of a sweep inherit it."""


def remember() -> None:
    """Before any launcher starts processes: keep what the user says."""
    os.environ[BY_USER] = GIVEN


def use_threads(settings: dict[str, Any], crossbar: Crossbar, datamodule: ImageDataModule) -> None:
    """Set PyTorch's threads: ``threads`` of the settings, else the user's OMP_NUM_THREADS, else `automatic`.

    Args:
        settings: of the job.
        crossbar: its network.
        datamodule: its data.
    """
    import torch

    threads = settings["threads"]
    if threads == "auto":
        devices = settings.get("trainer", {}).get("devices")
        processes = devices if isinstance(devices, int) and devices > 1 else 1
        said = _number(os.environ.get(BY_USER, GIVEN))
        threads = said or automatic(flops(crossbar, datamodule), cores() // processes)
    torch.set_num_threads(threads)
    os.environ[OMP] = str(threads)  # else Lightning sets its own where processes train together


def automatic(flops: float, cores: int) -> int:
    """One thread for every 40 MFLOP begun of one sample's forward pass, at most one a core.

    Example:
        >>> automatic(0.6e6, cores=64), automatic(81e6, cores=64), automatic(81e6, cores=2)  # LeNet; ResNet-20
        (1, 3, 2)
    """
    return max(1, min(-int(-flops // FLOPS_OF_A_THREAD), cores))


def cores() -> int:
    """The cores that this process may use, or a launcher's share of them."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _number(GIVEN) or allowed)


def flops(crossbar: Crossbar, datamodule: ImageDataModule) -> float:
    """Floating point operations of the matrix products in one sample's forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from worstcase.batches import inputs_and_labels, of_each, taken
    from worstcase.chip.modes import evaluating
    from worstcase.chip.substitution import run

    inputs, _ = inputs_and_labels(next(iter(datamodule.test_dataloader())))
    device = next(crossbar.parameters()).device
    sample = of_each(lambda t: t.to(device), taken(inputs, slice(1)))
    # with gradients, since the fused attention without them is not counted; a recurrent cell is, as if it ran once
    with evaluating(crossbar), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        run(crossbar.net, {}, sample)
    return max(counter.get_total_flops(), 2 * crossbar.coverage().weights)


def _number(said: str) -> int:
    """Of OMP_NUM_THREADS; 0 where it says none that OpenMP takes."""
    first = said.partition(",")[0].strip()
    return int(first) if first.isdigit() else 0
