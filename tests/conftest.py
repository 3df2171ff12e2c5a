"""Fixtures that several test files use: a trained network and tiny ones."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import files, run, shorten_ensembles
from filelock import FileLock
from hydra import initialize_config_dir
from studies import record_of
from torch import nn
from torch.utils.data import DataLoader

from worstcase import zoo
from worstcase.app import doors
from worstcase.attacks import Ensemble
from worstcase.evaluation.record import Record

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes share the cores
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a named folder in the first test process that needs it, for all processes. No test may write to it.

    This is "Making session-scoped fixtures execute only once" of pytest-xdist's documentation.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = root / "shared" / name, root / "shared" / f"{name}.whole"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not whole.exists():
                shutil.rmtree(folder)  # what another process failed to make
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def trained(made_once: Callable) -> Iterator[Path]:
    """The folder of a vanilla LeNet, trained on real digits for three epochs. To write to it, use `mine`."""

    def train(folder: Path) -> None:
        words = ["method=vanilla", "trainer.max_epochs=3", f"hydra.run.dir={folder / 'run'}"]
        run("src.train", *words, before=(shorten_ensembles,))

    folder = made_once("trained", train) / "run"
    before = files(folder)
    yield folder
    assert files(folder) == before, "a test changed the folder that all tests share"


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Path:
    """A copy of that folder for one test."""
    return shutil.copytree(trained, tmp_path / "mine")


@pytest.fixture(scope="session")
def published(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network in a zoo of its own."""
    return zoo.publish(trained, "lenet", tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def hydra() -> Iterator[None]:
    """Within the test, Hydra composes the project's own configuration."""
    with initialize_config_dir(doors.CONF, version_base="1.3"):
        yield


@pytest.fixture
def short_ensemble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ensembles of a few steps, for tests in which it does not matter how much they find."""
    monkeypatch.setattr(Ensemble, "share_of_steps", Ensemble.share_of_steps)  # restores it after the test
    shorten_ensembles()


@pytest.fixture
def small_net() -> nn.Module:
    """Convolution, batch norm with running statistics, dropout and a linear layer, for 1x6x6 inputs."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)
    )
    net(torch.randn(32, 1, 6, 6))
    return net


@pytest.fixture
def small_loader(small_batches: list) -> DataLoader:
    """The same batches as a loader, since Lightning takes a plain list for several loaders."""
    return DataLoader(small_batches, batch_size=None)


@pytest.fixture
def small_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(40, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (40,), generator=generator)
    return list(zip(images.split(16), labels.split(16), strict=True))


@pytest.fixture(scope="session")
def explained(trained: Path, made_once: Callable) -> Record:
    """A real evaluation by LWC in its free form, with its diagnosis."""

    def evaluate(folder: Path) -> None:
        free = ["attack=lwc", "attack.project=end", "attack.trials=3", "attack.epochs=2"]
        run("src.evaluate", f"run={trained}", *free, f"hydra.run.dir={folder / 'evaluation'}")

    return Record.load(made_once("explained", evaluate) / "evaluation")


@pytest.fixture(scope="session")
def study(trained: Path, explained: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings by three methods with two seeds at several th_g, and the explained evaluation."""
    root = tmp_path_factory.mktemp("study")
    record = Record.load(trained)
    for method, thgs in (("vanilla", [[0.01, 0.03]]), ("va", [[0.01, 0.03]]), ("atrice", [[0.01], [0.03]])):
        for at in thgs:
            for seed in (0, 1):
                folder = root / method / f"thg{at[-1]}-seed{seed}"
                folder.mkdir(parents=True)
                record_of(record, method=method, seed=seed, thgs=at).save(folder)
    folder = root / "vanilla" / "thg0.03-seed0" / "evaluations" / "lwc"
    folder.mkdir(parents=True)
    dataclasses.replace(explained, source_run="../..", flags=["a flag"]).save(folder)
    return root


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def made(study: Path, report_folder: Path) -> dict:
    """The sections of the study's report."""
    from worstcase.paper import SECTIONS
    from worstcase.report.write import write_report

    return {section.name: section for section in write_report([study], report_folder, SECTIONS)}
