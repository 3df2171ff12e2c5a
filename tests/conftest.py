"""What several test files use: tiny networks, and the commands as a user gives them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

REPOSITORY = Path(__file__).parent.parent


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, so that results do not depend on the machine's cores; no login, no data folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WORSTCASE_DATA": "no-such-folder"}


def run(*arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository; it must succeed, or fail, as said."""
    done = subprocess.run(
        command(*arguments), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def without_times(content: dict) -> dict:
    """A record but for what differs from run to run: durations."""
    content = {key: value for key, value in content.items() if key != "train_seconds"}
    content["attacks"] = [{k: v for k, v in found.items() if k != "seconds"} for found in content["attacks"]]
    return content


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
