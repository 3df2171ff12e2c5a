"""What several test files use: a trained network and tiny ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import files, run
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader

from worstcase.attacks import Ensemble
from worstcase.attacks.ensemble import Schedule

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores
    torch.set_num_threads(1)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first test process to need it makes, for all of them; no test may write to it.

    As pytest-xdist's documentation has it, under "Making session-scoped fixtures execute only once".
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    whole = folder.with_suffix(".whole")
    with FileLock(folder.with_suffix(".lock")):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what another process failed to make
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a vanilla LeNet, trained on the real digits for three epochs; `mine` may be written to."""

    def train(folder: Path) -> None:
        run("src.train", "method=vanilla", "trainer.max_epochs=3", f"hydra.run.dir={folder / 'run'}")

    folder = made_once(tmp_path_factory, "trained", train) / "run"
    before = files(folder)
    yield folder
    assert files(folder) == before, "a test wrote to what all tests share"


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test alone."""
    return shutil.copytree(trained, tmp_path / "mine")


@pytest.fixture
def short_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ensembles have all their parts, but of a few steps each: what they find is not as low as it could be."""
    few = {"steps": 3, "steps_of_restart": 8, "steps_of_finish": 10, "steps_of_lwc": 10, "steps_after_lwc": 4}
    monkeypatch.setattr(Ensemble, "schedule", Schedule(**few))


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
