"""Every experiment composes at both scales, and the smallest jobs of the cheap ones run."""

import contextlib
import csv
import json
import os
import random
import shlex
import time
import zipfile
from enum import Enum
from functools import cache
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
import torch
from commands import QUICK, REPOSITORY, files, forked, run, running, shorten_ensembles, without_times
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict

from worstcase import results_frame
from worstcase.app import doors, job, naming, resume, schema, status, sweeps
from worstcase.app.state import Begun
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import OWN_DATA
from worstcase.paper import SECTIONS

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf" / "experiment").iterdir())
OF_PROJECT = {"methods", "monte_carlo"}  # sections that are not the paper's
SMALL = ["case=quick/lenet", "seed=0", "dataset.limit=100", "trainer.max_epochs=1"]


@pytest.fixture
def hydra():
    with initialize_config_dir(doors.CONF, version_base="1.3"):
        yield


@cache
def folders(*overrides):
    return {job.folder for job in sweeps.jobs(overrides)}


def test_the_first_run_lies_where_the_readme_says(hydra):
    """Its identity, and that of all finished runs, does not change as settings are added."""
    (folder,) = folders()
    readme = (REPOSITORY / "README.md").read_text()
    assert f"record: outputs/{folder.relative_to('multirun')}/results.json" in readme


def test_each_figure_and_table_of_the_paper_is_an_experiment():
    assert set(EXPERIMENTS) - {"study_template"} == SECTIONS.keys() - OF_PROJECT


def with_each_setting(combinations):
    """Of a sweep's jobs, as many of the first ones as have each of its settings, and the last."""
    seen = set()
    for combination in combinations[:-1]:
        if set(combination) - seen:
            yield combination
        seen |= set(combination)
    yield combinations[-1]


@pytest.mark.parametrize("scale", ["quick", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_setting_of_a_sweep_composes_and_builds_what_it_attacks_with(hydra, name, scale):
    combinations = sweeps.combinations([f"experiment={name}", f"scale={scale}", "seed=0"])
    for combination in with_each_setting(combinations):
        assert {f"experiment={name}", f"scale={scale}"} <= set(combination)
        cfg = compose("train", combination, return_hydra_config=True)
        schema.check(naming.completed(cfg))
        if combination in (combinations[0], combinations[-1]):
            callbacks = instantiate(cfg.callbacks)
            assert callbacks.worst_case_at_test.attacks and cfg.scale == scale
            instantiate(cfg.model.net)


def test_figures_of_the_same_networks_share_their_jobs(hydra):
    table1 = folders("experiment=table1")
    assert folders("experiment=fig1") == folders("experiment=table4") == table1
    assert len(folders("experiment=fig4") & table1) == 1
    assert folders("experiment=table6", "method=vanilla") & folders("experiment=fig8b", "method=vanilla") != set()
    assert folders("experiment=table1", "scale=paper").isdisjoint(table1)


def trainings(*overrides):
    """How many networks a sweep trains."""
    every = sweeps.combinations(overrides)
    return len({resume.digest(naming.completed(compose("train", one, return_hydra_config=True))) for one in every})


def test_a_network_that_trains_without_th_g_is_trained_once_for_all(hydra):
    counts = {method: trainings("experiment=fig8a", f"method={method}") for method in ("vanilla", "va", "atrice")}
    assert counts == {"vanilla": 1, "va": 1, "atrice": 5}
    assert len(folders("experiment=fig8a", "method=vanilla")) == 5
    assert trainings("experiment=fig8a", "method=vanilla", "method.monitor=val/attacked_accuracy") == 5


def test_a_callback_that_stops_by_an_attack_makes_training_depend_on_th_g(hydra):
    stop = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,mode:max,monitor:val/%s}"
    assert trainings("experiment=fig8a", "method=vanilla", stop % "accuracy") == 1
    assert trainings("experiment=fig8a", "method=vanilla", stop % "attacked_accuracy") == 5


def test_training_without_th_g_gives_the_same_weights_at_every_th_g(tmp_path):
    for method in ("vanilla", "va"):
        states = []
        for thg in (0.01, 0.04):
            folder = tmp_path / method / str(thg) / "run"
            small = [*QUICK, "trainer.max_epochs=2"]
            run("src.train", f"method={method}", f"thg={thg}", *small, f"hydra.run.dir={folder}")
            states.append(torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_jobs_at_several_th_g_share_a_training_also_when_they_run_at_once(tmp_path):
    small = ["src.train", "method=vanilla", *QUICK, "trainer.max_epochs=3"]
    with contextlib.ExitStack() as stack:
        jobs = [
            stack.enter_context(running(*small, f"thg={thg}", f"hydra.run.dir={tmp_path / str(thg)}"))
            for thg in (0.0, 0.02, 0.1)
        ]
        assert [job.wait() for job in jobs] == [0, 0, 0]
        logs = [job.err.read_text() for job in jobs]
    assert sorted(log.count("epoch 3 of 3") for log in logs) == [0, 0, 1]
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
    assert "epoch 3 of 3" in other and "trained already" not in other


@pytest.mark.parametrize(
    ("changes", "taken"),
    [({}, True), ({"net": "mine:Net"}, False), ({"dataset": {"_target_": OWN_DATA, "of": "mine:data"}}, False)],
)
def test_a_training_is_taken_over_unless_the_users_code_may_have_changed_it(changes, taken, tmp_path):
    method = {"trains_without_thg": True, "monitor": "val/accuracy"}
    settings = {"thg": 0.1, "method": method, "net": None, "dataset": {}, "pulses": None} | changes
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "this").mkdir()
    with zipfile.ZipFile(tmp_path / "other" / "checkpoints" / "best.ckpt", "w"):
        pass
    done = resume.Trained(seconds=1, epochs=1, validation=0.9, training=resume.digest(settings))
    done.save(tmp_path / "other")
    with resume.training_of(tmp_path / "this", settings | {"thg": 0.2}) as trained:
        assert trained == (done if taken else None)


def test_the_command_of_a_job_names_its_folder(monkeypatch):
    places = ["hydra.sweep.dir=out", "hydra.sweep.subdir=x-${seed}"]
    overrides = SimpleNamespace(task=["seed=0"], hydra=["hydra.mode=MULTIRUN", *places])
    told = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=overrides)
    monkeypatch.setattr(doors.HydraConfig, "get", lambda: told)
    assert shlex.split(doors.command_in_place("train"))[-4:] == ["-m", "seed=0", *places]


@pytest.fixture(scope="session")
def swept(made_once):
    """One small job of an experiment with each set of attacks, as its command runs it; no test may write to it."""

    def sweep(root):
        for name, *overrides in (
            ("table3",),
            ("fig3",),
            ("fig7",),
            ("fig8a", "method=vanilla,atrice", "thg=0.03,0.01"),
        ):
            words = [f"experiment={name}", *SMALL, *overrides, f"hydra.sweep.dir={root}"]
            run("src.train", "-m", *words, before=(shorten_ensembles,))

    return made_once("swept", sweep)


def test_experiments_run_and_their_figures_and_tables_are_in_the_report(swept, tmp_path):
    records = [json.loads(path.read_text()) for path in swept.rglob("results.json")]
    assert sorted(record["method"] for record in records) == ["atrice", "atrice", *["vanilla"] * 5]
    shown = run("src.report", f"folders=[{swept}]", f"out={tmp_path}").stdout
    made = {line.split()[0] for line in shown.splitlines() if line.startswith("  ")}
    assert made >= {
        "fig1",
        "fig3",
        "fig4",
        "fig5",
        "fig6",
        "fig7",
        "fig8a",
        "table1",
        "table2",
        "table3",
        "table4",
    }
    page = (tmp_path / "index.html").read_text()
    for name in ("fig3", "fig7"):
        assert f"python -m src.train -m experiment={name}" in page


def test_status_tells_finished_failed_and_missing(swept, tmp_path):
    shown = run("src.status", f"folders=[{swept}]").stdout
    assert shown.count("finished  ") == 7 and "7 finished, 0 failed, 0 begun" in shown
    done = run("src.status", "sweep=nope", fails=True)
    assert "Could not find 'experiment/nope' Available options in 'experiment': fig1 " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_status_of_an_experiment_gives_the_command_of_what_is_missing(hydra, tmp_path):
    jobs = sweeps.jobs(["experiment=fig8a", f"hydra.sweep.dir={tmp_path}"])
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "results.json").write_text("{}")
    jobs[1].folder.mkdir(parents=True)
    Begun("the command", {}, "the error").save(jobs[1].folder)
    lines = list(status.of_jobs(jobs))
    assert lines[0] == f"finished  {jobs[0].folder}"
    assert lines[1] == f"failed    {jobs[1].folder}: the error\n          the command"
    assert all(line.startswith("missing   ") for line in lines[2:-1]) and jobs[2].command in lines[2]
    assert lines[-1] == "1 of 20 jobs finished, 1 failed"


@pytest.mark.parametrize(("dataset", "moves"), [("mnist5k", False), ("mnist", False), ("imagenet", True)])
def test_where_the_data_lie_is_no_part_of_a_job_unless_it_tells_which_they_are(hydra, dataset, moves):
    here, there = (folders(f"dataset={dataset}", f"data_dir={place}") for place in ("here", "there"))
    assert (here != there) == moves


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
            }
        }
    )
    with pytest.raises(schema.ConfigError, match="maximize") if refused else contextlib.nullcontext():
        sweeps.announce(sweep)


# ---- sweeps that survive


def test_two_sweeps_at_once_share_the_jobs(tmp_path):
    """Each job is done by one process, and each folder has one whole record."""
    sweep = ["src.train", "-m", "method=vanilla", "seed=0,1,2,3", *QUICK, f"hydra.sweep.dir={tmp_path}"]
    with running(*sweep) as first, running(*sweep) as second:
        assert [first.wait(), second.wait()] == [0, 0], first.err.read_text() + second.err.read_text()
        shown = [process.err.read_text() for process in (first, second)]
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert sorted(record["seed"] for record in records) == [0, 1, 2, 3]
    assert sum(text.count("epoch 1 of 1") for text in shown) == 4
    assert sum(text.count("so left to it") + text.count("finished already") for text in shown) == 4
    assert all(path.read_text().count("epoch 1 of 1") == 1 for path in tmp_path.rglob("run.log"))


def test_a_sweep_killed_twice_runs_only_what_is_missing_and_ends_as_an_undisturbed_one(tmp_path):
    """SIGKILL at a random moment: between jobs, in an epoch, in an attack, while a file is written."""
    jobs = ["method=vanilla,universal_at", "seed=0", "thg=0.01,0.02,0.03", *QUICK, "trainer.max_epochs=2"]
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
    assert 2 <= done < 6
    again = run(*sweep).stderr
    assert again.count("finished already") == done
    after = files(killed)
    assert {path: after[path] for path in before} == before
    folders = sorted(path.parent.relative_to(whole) for path in whole.rglob("results.json"))
    assert folders == sorted(folder.relative_to(killed) for folder in finished()) and len(folders) == 6
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


def hold(file, told):
    lock = FileLock(file)
    lock.acquire()
    told.touch()
    time.sleep(300)


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
