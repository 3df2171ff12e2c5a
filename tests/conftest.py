"""What several test files use: a trained network and tiny ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from commands import run
from torch import nn
from torch.utils.data import DataLoader

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a vanilla LeNet, trained on the real digits for three epochs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("src.train", "method=vanilla", "trainer.max_epochs=3", f"hydra.run.dir={folder}")
    return folder


@pytest.fixture
def small_net() -> nn.Module:
    """Convolution, batch norm with used statistics, dropout and a linear layer, for 1x6x6 inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    )
    net(torch.randn(32, 1, 6, 6))
    return net


@pytest.fixture
def small_loader(small_batches: list) -> DataLoader:
    """The same batches as a loader: Lightning takes a plain list for several loaders."""
    return DataLoader(small_batches, batch_size=None)


@pytest.fixture
def small_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (40,), generator=generator)
    return list(zip(images.split(16), labels.split(16), strict=True))
