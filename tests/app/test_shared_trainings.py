"""A network that trains without th_g is trained once, and the jobs at other th_g attack it."""

import contextlib
import json
import zipfile
from functools import cache

import pytest
import torch
from commands import QUICK, run, running
from hydra import compose

from worstcase import results_frame
from worstcase.app import naming, resume, sweeps
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import OWN_DATA

FIG8A = ("experiment=fig8a", "hydra.sweeper.params.thg='0.01,0.03'")


@cache
def trainings(*overrides):
    """How many networks a sweep trains."""
    every = sweeps.combinations(overrides)
    return len({resume.digest(naming.completed(compose("train", one, return_hydra_config=True))) for one in every})


def test_a_network_that_trains_without_th_g_is_trained_once_for_all(hydra):
    counts = {method: trainings(*FIG8A, f"method={method}") for method in ("vanilla", "va", "atrice")}
    assert counts == {"vanilla": 1, "va": 1, "atrice": 2}
    assert len({job.folder for job in sweeps.jobs((*FIG8A, "method=vanilla"))}) == 2
    assert trainings(*FIG8A, "method=vanilla", "method.monitor=val/attacked_accuracy") == 2


def test_a_callback_that_stops_by_an_attack_makes_training_depend_on_th_g(hydra):
    stop = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,mode:max,monitor:val/%s}"
    assert trainings(*FIG8A, "method=vanilla", stop % "accuracy") == 1
    assert trainings(*FIG8A, "method=vanilla", stop % "attacked_accuracy") == 2


def test_training_without_th_g_gives_the_same_weights_at_every_th_g(tmp_path):
    for method in ("vanilla", "va"):
        states = []
        for thg in (0.01, 0.04):
            folder = tmp_path / method / str(thg) / "run"
            small = [*QUICK, "trainer.max_epochs=2", "dataset.limit=100", "certificate=null"]
            run("src.train", f"method={method}", f"thg={thg}", *small, f"hydra.run.dir={folder}")
            states.append(torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_jobs_at_several_th_g_share_a_training_also_when_they_run_at_once(tmp_path):
    small = ["src.train", "method=vanilla", *QUICK, "trainer.max_epochs=2", "certificate=null"]
    with contextlib.ExitStack() as stack:
        jobs = [
            stack.enter_context(running(*small, f"thg={thg}", f"hydra.run.dir={tmp_path / str(thg)}"))
            for thg in (0.0, 0.02, 0.1)
        ]
        assert [job.wait() for job in jobs] == [0, 0, 0]
        logs = [job.err.read_text() for job in jobs]
    assert sorted(log.count("epoch 2 of 2") for log in logs) == [0, 0, 1]
    assert sorted(log.count("trained already in ") for log in logs) == [0, 1, 1]
    records = [Record.load(tmp_path / str(thg)) for thg in (0.0, 0.02, 0.1)]
    assert len({(record.train_seconds, record.epochs, record.clean_accuracy) for record in records}) == 1
    accuracies = [record.attacked_accuracy for record in records]
    assert accuracies[0] == records[0].clean_accuracy and accuracies == sorted(accuracies, reverse=True)
    assert {record.trained_commit for record in records} == {records[0].git_commit}
    thg = next(thg for thg, log in zip((0.0, 0.02, 0.1), logs, strict=True) if "trained already in " in log)
    folder = tmp_path / str(thg)
    (folder / "results.json").unlink()  # a job that is repeated takes its own copy
    told = folder / resume.TRAINED
    told.write_text(json.dumps(json.loads(told.read_text()) | {"commit": "b" * 40}))
    assert "epoch 1" not in run(*small, f"thg={thg}", f"hydra.run.dir={folder}").stderr
    assert Record.load(folder).trained_commit == "b" * 40 != Record.load(folder).git_commit
    assert set(results_frame([folder]).trained_commit) == {"b" * 40}
    assert not list(tmp_path.glob(".training*"))
    other = run(*small, "seed=1", "thg=0.1", f"hydra.run.dir={tmp_path / 'seed1'}").stderr
    assert "epoch 2 of 2" in other and "trained already" not in other


@pytest.mark.parametrize(
    ("changes", "taken"),
    [
        ({}, True),
        ({"net": "mine:Net"}, False),
        ({"dataset": {"_target_": OWN_DATA, "of": "mine:data"}}, False),
        ({"method": {"_target_": "mine.Method"}}, False),
        ({"model": {"optimizer": {"_target_": "mine.Optimizer"}}}, False),
        ({"callbacks": {"worst_case_per_epoch": {"attack": {"_target_": "mine.Attack"}}}}, False),
        ({"callbacks": {"worst_case_at_test": {"attacks": [{"_target_": "mine.Attack"}]}}}, True),
    ],
)
def test_a_training_is_taken_over_unless_the_users_code_may_have_changed_it(changes, taken, tmp_path):
    settings = {"thg": 0.1, "net": None, "dataset": {}, "pulses": None} | changes
    settings["method"] = {"trains_without_thg": True, "monitor": "val/accuracy"} | settings.get("method", {})
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "this").mkdir()
    with zipfile.ZipFile(tmp_path / "other" / "checkpoints" / "best.ckpt", "w"):
        pass
    done = resume.Trained(seconds=1, epochs=1, validation=0.9, training=resume.digest(settings))
    done.save(tmp_path / "other")
    with resume.training_of(tmp_path / "this", settings | {"thg": 0.2}) as trained:
        assert trained == (done if taken else None)
