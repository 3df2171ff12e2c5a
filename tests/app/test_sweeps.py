"""Sweeps: several at once, killed and gone on with, by other launchers and sweepers, with errors."""

import contextlib
import csv
import json
import os
import random
import shlex
import signal
import sys
import time
from enum import Enum
from functools import cache
from urllib.parse import quote, unquote

import pytest
from commands import QUICK, files, forked, run, running, without_times
from filelock import FileLock
from hydra import compose
from omegaconf import OmegaConf, open_dict

from worstcase.app import doors, job, sweeps
from worstcase.app.start import start
from worstcase.app.state import Begun
from worstcase.evaluation.record import Record

SMALL = ["case=quick/lenet", "seed=0", "dataset.limit=100", "trainer.max_epochs=1"]


@cache
# ---- what a sweep tells its jobs, and they a sweeper


def returned_to(file):
    """What a job returns to a sweeper goes to a file too, a line each."""
    from worstcase.app import evaluate, train

    for command in (train, evaluate):

        def told(*arguments, original=command.run_job):
            value = original(*arguments)
            with file.open("a") as lines:
                lines.write(f"{value}\n")
            return value

        command.run_job = told


def returned(file, *words):
    """What the jobs of a command return."""
    file.unlink(missing_ok=True)
    run(*words, before=(returned_to, file))
    return [float(line) for line in file.read_text().splitlines()]


def best(folder, metric):
    with (folder / "metrics.csv").open() as lines:
        return max(float(row[metric]) for row in csv.DictReader(lines) if row[metric])


@pytest.mark.slow
def test_a_sweeper_selects_by_the_validation_split_never_by_the_test_set(tmp_path):
    small = ["method=vanilla", *QUICK, "trainer.max_epochs=3", "dataset.limit=400", f"hydra.sweep.dir={tmp_path}"]
    sweep = ["src.train", "-m", *small, "thg=0.01,0.05"]
    values = returned(tmp_path / "told", *sweep)
    folders = [path.parent for path in tmp_path.rglob("results.json")]
    (trained,) = (folder for folder in folders if "epoch 3 of 3" in (folder / "run.log").read_text())
    accuracy = pytest.approx(best(trained, "val/accuracy"))
    assert values == [accuracy, accuracy] and len(folders) == 2  # one of them took the other's training
    assert [Record.load(folder).validation for folder in folders] == values
    assert values[0] not in [Record.load(folder).attacked_accuracy for folder in folders]
    (folders[0] / "results.json").unlink()  # as if killed in the test; the other is not run again
    assert returned(tmp_path / "told", *sweep) == values

    hardened = ["method=atrice", *QUICK, "trainer.max_epochs=2", f"hydra.run.dir={tmp_path / 'hardened'}"]
    values = returned(tmp_path / "told", "src.train", *hardened)
    assert values == [pytest.approx(best(tmp_path / "hardened", "val/attacked_accuracy"))]

    attack = ["attack=flwc", f"run={trained}", f"hydra.run.dir={tmp_path / 'evaluation'}"]
    values = returned(tmp_path / "told", "src.evaluate", *attack)
    assert values == [Record.load(tmp_path / "evaluation").attacked_accuracy]


def test_jobs_that_inherit_no_environment_know_their_sweep(hydra, tmp_path, monkeypatch):
    for name in (sweeps.SWEEP, sweeps.FAILURES):
        monkeypatch.setenv(name, "another's")
    monkeypatch.setenv(doors.DOOR, "1")
    place = tmp_path / "it's, [x] = 'a b' \\ ü"
    sweep = compose("train", ["thg=0.01"], return_hydra_config=True)
    with open_dict(sweep.hydra):
        sweep.hydra.job.name, sweep.hydra.sweep.dir = "train", str(place)
        sweep.hydra.overrides.hydra = ["hydra/sweeper=basic", "hydra.mode=MULTIRUN"]
        sweep.hydra.overrides.task = ["init_from='a b'", "lr=tag(log, interval(1e-4,1e-2))"]
    sweeps.announce(sweep)
    job = compose("train", list(sweep.hydra.overrides.hydra), return_hydra_config=True).hydra.job
    assert job.env_set == {name: os.environ[name] for name in (sweeps.SWEEP, sweeps.FAILURES, doors.DOOR)}
    assert unquote(job.env_set[sweeps.FAILURES]).startswith(f"{place}/.failed-")
    assert shlex.split(unquote(job.env_set[sweeps.SWEEP]))[3:] == [
        *sweep.hydra.overrides.task,
        "hydra/sweeper=basic",
    ]


@pytest.mark.parametrize(("name", "refused"), [("train", True), ("evaluate", False)])
def test_a_search_for_the_settings_that_train_worst_is_refused(name, refused, monkeypatch):
    for variable in (sweeps.SWEEP, sweeps.FAILURES):
        monkeypatch.setenv(variable, "another's")
    direction = Enum("Direction", "minimize maximize").minimize
    sweep = OmegaConf.create(
        {
            "hydra": {
                "job": {"name": name},
                "sweeper": {"direction": direction},
                "sweep": {"dir": "x"},
                "overrides": {"task": [], "hydra": []},
                "runtime": {"config_sources": []},
            }
        }
    )
    with pytest.raises(ValueError, match="maximize") if refused else contextlib.nullcontext():
        sweeps.announce(sweep)


# ---- sweeps that survive


def test_two_sweeps_at_once_share_the_jobs(tmp_path):
    """Each job is done by one process, and each folder has one whole record."""
    sweep = ["src.train", "-m", "method=vanilla", "seed=0,1,2", *QUICK, f"hydra.sweep.dir={tmp_path}"]
    with running(*sweep) as first, running(*sweep) as second:
        assert [first.wait(), second.wait()] == [0, 0], first.err.read_text() + second.err.read_text()
        shown = [process.err.read_text() for process in (first, second)]
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert sorted(record["seed"] for record in records) == [0, 1, 2]
    assert sum(text.count("epoch 1 of 1") for text in shown) == 3
    assert sum(text.count("so left to it") + text.count("finished already") for text in shown) == 3
    assert all(path.read_text().count("epoch 1 of 1") == 1 for path in tmp_path.rglob("run.log"))


def test_a_sweep_killed_twice_runs_only_what_is_missing_and_ends_as_an_undisturbed_one(tmp_path):
    """SIGKILL at a random moment: between jobs, in an epoch, in an attack, while a file is written."""
    jobs = ["method=vanilla,universal_at", "seed=0", "thg=0.01,0.03", *QUICK, "trainer.max_epochs=2"]
    jobs += ["attack@val_attack=flwc", "val_attack.steps=2", "test_attack.steps=2", "certificate=null"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("src.train", "-m", *jobs, f"hydra.sweep.dir={whole}")
    sweep = ["src.train", "-m", *jobs, f"hydra.sweep.dir={killed}"]

    def finished():
        return [path.parent for path in killed.rglob("results.json")]

    before = {}
    for _ in range(2):
        with running(*sweep) as process:
            done = len(finished())
            process.wait_until(lambda done=done: len(finished()) > done)
            time.sleep(random.uniform(0, 0.4))
            process.kill()
        after = files(killed)
        assert {path: after[path] for path in before} == before
        before = {path: content for folder in finished() for path, content in files(folder).items()}
    done = len(finished())
    assert 2 <= done < 4
    again = run(*sweep).stderr
    assert again.count("finished already") == done
    after = files(killed)
    assert {path: after[path] for path in before} == before
    folders = sorted(path.parent.relative_to(whole) for path in whole.rglob("results.json"))
    assert folders == sorted(folder.relative_to(killed) for folder in finished()) and len(folders) == 4
    for folder in folders:
        first, second = (json.loads((root / folder / "results.json").read_text()) for root in (whole, killed))
        assert first.pop("sweep").replace(str(whole), str(killed)) == second.pop("sweep")
        assert without_times(first) == without_times(second), folder
        assert folder.parts[-2] == first["method"]
        assert folder.name.startswith(f"thg{first['thg']:g}-seed{first['seed']}-")


def test_a_job_that_another_process_holds_is_left_to_it_and_free_after_its_death(tmp_path):
    small = ["src.train", "method=vanilla", *QUICK, f"hydra.run.dir={tmp_path}"]
    holder = forked.Process(target=hold, args=(tmp_path / job.LOCK, tmp_path / "held"))
    holder.start()
    while not (tmp_path / "held").exists():
        assert holder.exitcode is None
        time.sleep(0.02)
    (tmp_path / "held").unlink()
    done = run(*small)
    assert "another process is at work in" in done.stderr and not (tmp_path / "results.json").exists()
    holder.kill()
    holder.join()
    run(*small)
    assert (tmp_path / "results.json").exists()


def test_a_folder_where_another_configuration_is_at_work_is_refused_and_left_as_it_is(tmp_path):
    job.Begun("python -m src.train seed=1", {"seed": 1}).save(tmp_path)
    begun = (tmp_path / "job.json").read_bytes()
    with FileLock(tmp_path / job.LOCK):
        done = run("src.train", "method=vanilla", *QUICK, f"hydra.run.dir={tmp_path}", fails=True)
    assert "another configuration is at work in" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "job.json").read_bytes() == begun


def hold(file, told):
    lock = FileLock(file)
    lock.acquire()
    told.touch()
    time.sleep(300)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("thg=0.01,nofile.csv,0.02", "thg=nofile.csv: no job was begun, since there is no table of a tolerance"),
        ("seed=0,-1", "seed=-1: no job was begun, since seed=-1: must be 0 to"),
        ("hydra.run.dir=here", "hydra.run.dir=here: a sweep takes hydra.sweep.dir=FOLDER"),
        ("seed=glob(*)", "the sweep has no job; glob() knows only the files of groups"),
    ],
)
def test_a_sweep_with_a_bad_job_is_refused_before_its_first_job(words, message, tmp_path):
    done = run("src.train", "-m", *QUICK, words, f"hydra.sweep.dir={tmp_path}", fails=True)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_failures_are_shown_however_a_sweep_ends(tmp_path, monkeypatch, capsys):
    listed = tmp_path / ".failed-0"
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["train"])
    for name in ("HYDRA_FULL_ERROR", "GOMP_SPINCOUNT", sweeps.FAILURES):
        monkeypatch.setenv(name, "another's")

    def launch():
        os.environ[sweeps.FAILURES] = quote(str(listed))
        Begun("python -m src.train seed=1", {}, "it diverged").save(tmp_path)
        sweeps.list_failure(tmp_path)
        raise OSError("the launcher is gone")

    with pytest.raises(SystemExit, match="error: the launcher is gone"):
        start(launch)
    assert "it diverged\n          python -m src.train seed=1" in capsys.readouterr().err and not listed.exists()


def test_the_errors_of_a_sweep_stand_at_its_end_with_their_commands(tmp_path):
    small = ["method=vanilla", *QUICK]
    bad = "+model.optimizer.eps=-1,1e-3,-2"
    done = run("src.train", "-m", *small, bad, f"hydra.sweep.dir={tmp_path}", fails=True)
    assert len(list(tmp_path.rglob("results.json"))) == 1
    end = done.stderr.splitlines()[-4:]
    for rate in (-1, -2):
        (place,) = [i for i, line in enumerate(end) if line.endswith(f": Invalid epsilon value: {rate}")]
        assert end[place].startswith("failed") and f"model.optimizer.eps={rate} " in end[place + 1]
        assert "src.train -m " in end[place + 1] and end[place + 1].endswith(f"hydra.sweep.dir={tmp_path}")
    shown = run("src.status", f"folders=[{tmp_path}]").stdout
    assert "1 finished, 2 failed" in shown and shown.count("failed    ") == 2
