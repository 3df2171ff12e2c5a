from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import run
from studies import record_of

from worstcase.evaluation.record import Record
from worstcase.report.write import write_report


@pytest.fixture(scope="session")
def explained(trained: Path, made_once: Callable) -> Record:
    """A real evaluation by LWC in its free form, with its diagnosis."""

    def evaluate(folder: Path) -> None:
        free = ["attack=lwc", "attack.project=end", "attack.trials=3", "attack.epochs=2"]
        run("src.evaluate", f"run={trained}", *free, f"hydra.run.dir={folder / 'evaluation'}")

    return Record.load(made_once("explained", evaluate) / "evaluation")


@pytest.fixture(scope="session")
def study(trained: Path, explained: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of two seeds at several th_g, as training runs, and the explained evaluation."""
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def made(study: Path, folder: Path) -> dict:
    return {section.name: section for section in write_report([study], folder)}
