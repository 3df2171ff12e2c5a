"""A run that is killed, moved to another folder and continued ends as one that was not disturbed."""

import importlib
import json
import os
import shutil
import signal

import pytest
import torch
from commands import run, without_times
from lightning.pytorch.callbacks import ModelCheckpoint

from worstcase.callbacks import MovableCheckpoint

STAGES = {  # what is called at each stage, and the call of it, within its process, at which the run is killed
    "in epoch 2": ("worstcase.callbacks.epoch_lines:EpochLines.on_train_epoch_start", 2),
    "in epoch 3": ("worstcase.callbacks.epoch_lines:EpochLines.on_train_epoch_start", 2),
    "in the test": ("worstcase.methods.base:Method.test_step", 1),
    "in Monte Carlo": ("worstcase.attacks.monte_carlo:_correct", 2),
    "in the attack": ("worstcase.attacks.search:Search.gradient", 2),
}
SETTINGS = [
    "trainer.max_epochs=3",
    "dataset.limit=200",
    "certificate=null",
    "attack@val_attack=flwc",
    "val_attack.steps=3",
    "attack@test_attack=monte_carlo",
    "test_attack.instances=40",
    "suite=single",
    "+suite.first=${val_attack}",
]


def kill_at(place: str, call: int) -> None:
    """Kill this process when a function is called so often."""
    module, _, name = place.partition(":")
    *owner, name = name.split(".")
    of = importlib.import_module(module)
    for part in owner:
        of = getattr(of, part)
    original, calls = getattr(of, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(of, name, counted)


def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "method", ["universal_at", pytest.param("universal_at +trainer.max_steps=18", marks=pytest.mark.slow)]
)
def test_killed_at_each_stage_and_moved_each_time(method, tmp_path):
    settings = [*f"method={method}".split(), *SETTINGS]
    whole, folder = tmp_path / "elsewhere" / "whole", tmp_path / "run0"
    run("src.train", *settings, f"hydra.run.dir={whole}")
    for number, (stage, (place, call)) in enumerate(STAGES.items(), 1):
        done = run("src.train", *settings, f"hydra.run.dir={folder}", killed_by=(kill_at, place, call))
        assert done.returncode == -signal.SIGKILL and not (folder / "results.json").exists(), stage
        assert ("going on from" in done.stderr) == (number > 1), stage
        assert ("epoch 1 of 3" in done.stderr) == (number == 1), stage
        assert (folder / "checkpoints" / "last.ckpt").exists(), stage
        moved = tmp_path / f"run{number}"
        if number == len(STAGES):
            shutil.copytree(folder, moved)  # and the original is there still
        else:
            folder.rename(moved)
        folder = moved
    run("src.train", *settings, f"hydra.run.dir={folder}")
    assert without_times(record(folder)) == without_times(record(whole))
    for name in ("best.ckpt", "last.ckpt"):
        states = [torch.load(at / "checkpoints" / name, weights_only=True)["state_dict"] for at in (folder, whole)]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0].keys() | states[1].keys())
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert (folder / "run.log").read_text().count("epoch 1 of 3") == 1  # the log tells of all parts
    for at in (folder, whole):
        assert 0 < record(at)["train_seconds"] < 60


def test_an_evaluation_goes_on_where_its_run_was_moved_to(mine, tmp_path):
    words = ["attack=monte_carlo", "attack.instances=40", "dataset.limit=20"]
    run("src.evaluate", f"run={mine}", *words, killed_by=(kill_at, "worstcase.attacks.monte_carlo:_correct", 3))
    (file,) = mine.glob("evaluations/monte_carlo*/instances.csv")
    before = file.read_text().splitlines()
    assert len(before) == 2 + 32
    moved = mine.rename(tmp_path / "moved")
    run("src.evaluate", f"run={moved}", *words)
    (record,) = moved.glob("evaluations/monte_carlo*/results.json")
    after = (record.parent / "instances.csv").read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 2 + 40
    assert "finished already" in run("src.evaluate", f"run={moved}", *words).stderr


def test_a_training_keeps_the_chips_that_monte_carlo_drew_at_its_end(tmp_path):
    words = [*SETTINGS, "method=vanilla", "trainer.max_epochs=1", "dataset.limit=20", f"hydra.run.dir={tmp_path}"]
    run("src.train", *words, killed_by=(kill_at, "worstcase.attacks.monte_carlo:_correct", 3))
    (file,) = tmp_path.rglob("instances.csv")
    before = file.read_text().splitlines()
    assert len(before) == 2 + 32
    run("src.train", *words)
    after = file.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 2 + 40
    assert "finished already" in run("src.train", *words).stderr


def test_a_moved_checkpoint_remembers_how_good_the_best_was(tmp_path):
    """Lightning's own does not."""
    old, new = tmp_path / "old", tmp_path / "new"
    state = {
        "monitor": "m",
        "best_model_score": torch.tensor(0.9),
        "best_model_path": str(old / "best.ckpt"),
        "current_score": torch.tensor(0.5),
        "dirpath": str(old),
        "best_k_models": {str(old / "best.ckpt"): torch.tensor(0.9)},
        "kth_best_model_path": str(old / "best.ckpt"),
        "kth_value": torch.tensor(0.9),
        "last_model_path": "",
    }
    lightnings = ModelCheckpoint(dirpath=new, monitor="m")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        lightnings.load_state_dict(state)
    assert lightnings.best_model_score is None
    ours = MovableCheckpoint(dirpath=new, monitor="m")
    ours.load_state_dict(state)
    assert (ours.best_model_score, ours.best_model_path) == (0.9, str(new / "best.ckpt"))
    assert ours.best_k_models == {str(new / "best.ckpt"): 0.9} and ours.last_model_path == ""
