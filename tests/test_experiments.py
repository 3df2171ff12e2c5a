"""Every experiment composes at both scales, and the smallest jobs of the cheap ones run."""

import json
import random
import shlex
import subprocess
import sys
import time

import pytest
import torch
from commands import REPOSITORY, command, environment, run, without_times
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from src import cli, identity, sweeps
from src.begun import Begun
from worstcase.report import SECTIONS

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf" / "experiment").iterdir())
OF_PROJECT = {"methods", "monte_carlo"}  # sections that are not the paper's
ALONE = "callbacks.worst_case_at_test.besides=null"  # no ensemble
SMALL = ["case=quick/lenet", "seed=0", "dataset.limit=100", "trainer.max_epochs=1"]


@pytest.fixture
def hydra():
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        yield


def folders(*overrides):
    return {job.folder for job in sweeps.jobs(overrides)}


def test_each_figure_and_table_of_the_paper_is_an_experiment():
    assert set(EXPERIMENTS) - {"study_template"} == SECTIONS.keys() - OF_PROJECT


@pytest.mark.parametrize("scale", ["quick", "paper"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_composes_and_builds_what_it_attacks_with(hydra, name, scale):
    jobs = sweeps.jobs([f"experiment={name}", f"scale={scale}", "seed=0"])
    assert jobs
    for job in (jobs[0], jobs[-1]):
        overrides = shlex.split(job.command)[3:]
        cfg = identity.completed(compose("train", overrides))
        callbacks = instantiate(cfg.callbacks)
        assert callbacks.worst_case_at_test.attacks and cfg.scale == scale
        instantiate(cfg.model.net)
        assert {f"experiment={name}", f"scale={scale}"} <= set(overrides)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_its_head_says_what_it_shows_and_the_command(name):
    head, *lines = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert head == "# @package _global_"
    comments = [line for line in lines[:6] if line.startswith("# ")]
    assert len(comments) >= 3
    assert any(line.startswith(f"# python -m src.train -m experiment={name}") for line in comments)


def test_figures_of_the_same_networks_share_their_jobs(hydra):
    table1 = folders("experiment=table1")
    assert folders("experiment=fig1") == folders("experiment=table4") == table1
    assert len(folders("experiment=fig4") & table1) == 1
    assert folders("experiment=table6") & folders("experiment=fig8b") != set()
    assert folders("experiment=table1", "scale=paper").isdisjoint(table1)


def test_a_network_that_trains_without_th_g_is_one_job_for_all(hydra):
    counts = {
        method: len(folders("experiment=fig8a", f"method={method}"))
        for method in ("vanilla", "va", "atrice", "universal_at")
    }
    assert counts == {"vanilla": 1, "va": 1, "atrice": 5, "universal_at": 5}
    selected_by_thg = ["method=vanilla", "method.monitor=val/attacked_accuracy"]
    assert len(folders("experiment=fig8a", *selected_by_thg)) == 5


def test_training_without_th_g_gives_the_same_weights_at_every_th_g(tmp_path):
    for method in ("vanilla", "va"):
        states = []
        for thg in (0.01, 0.04):
            folder = tmp_path / f"{method}-{thg}"
            small = ["dataset.limit=300", "trainer.max_epochs=3", "attack@test_attack=flwc", ALONE]
            small += ["callbacks.worst_case_at_test.attacks=[${test_attack}]"]
            run("src.train", f"method={method}", f"thg={thg}", *small, f"hydra.run.dir={folder}")
            states.append(torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.fixture(scope="session")
def swept(tmp_path_factory):
    """One small job of an experiment with each set of attacks, as its command runs it."""
    root = tmp_path_factory.mktemp("swept")
    for name, *overrides in (
        ("table3",),
        ("fig3",),
        ("fig7",),
        ("fig8a", "method=vanilla,atrice", "thg=0.03,0.01", "thgs=[0,0.01,0.03]"),
    ):
        run("src.train", "-m", f"experiment={name}", *SMALL, *overrides, f"hydra.sweep.dir={root}")
    return root


def test_experiments_run_and_their_figures_and_tables_are_in_the_report(swept, tmp_path):
    records = [json.loads(path.read_text()) for path in swept.rglob("results.json")]
    assert sorted(record["method"] for record in records) == ["atrice", "atrice", *["vanilla"] * 4]
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
    shown = run("src.report", "status=true", f"folders=[{swept}]").stdout
    assert shown.count("finished  ") == 6 and "6 finished, 0 failed, 0 begun" in shown
    done = run("src.report", "status=nope", fails=True)
    assert "Could not find 'experiment/nope' Available options in 'experiment': fig1 " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_status_of_an_experiment_gives_the_command_of_what_is_missing(hydra, tmp_path):
    jobs = sweeps.jobs(["experiment=fig8a", f"hydra.sweep.dir={tmp_path}"])
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "results.json").write_text("{}")
    jobs[1].folder.mkdir(parents=True)
    Begun("the command", {}, "the error").save(jobs[1].folder)
    lines = list(sweeps.status([], jobs))
    assert lines[0] == f"finished  {jobs[0].folder}"
    assert lines[1] == f"failed    {jobs[1].folder}: the error\n          the command"
    assert all(line.startswith("missing   ") for line in lines[2:-1]) and jobs[2].command in lines[2]
    assert lines[-1] == "1 of 12 jobs finished, 1 failed"


@pytest.mark.parametrize(("dataset", "moves"), [("mnist5k", False), ("mnist", False), ("imagenet", True)])
def test_where_the_data_lie_is_no_part_of_a_job_unless_it_tells_which_they_are(hydra, dataset, moves):
    here, there = (folders(f"dataset={dataset}", f"data_dir={place}") for place in ("here", "there"))
    assert (here != there) == moves


# ---- sweeps that survive


def test_two_sweeps_at_once_share_the_jobs(tmp_path):
    """Each job is done by one process, and each folder has one whole record."""
    small = ["dataset.limit=100", "trainer.max_epochs=2", "attack@test_attack=flwc", ALONE]
    sweep = command("src.train", "-m", "method=vanilla", "seed=0,1,2,3", *small, f"hydra.sweep.dir={tmp_path}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(sweep, cwd=REPOSITORY, env=environment(), **pipes) for _ in range(2)]
    shown = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert sorted(record["seed"] for record in records) == [0, 1, 2, 3]
    assert sum(text.count("epoch 2 of 2") for text in shown) == 4
    assert sum(text.count("so left to it") + text.count("finished already") for text in shown) == 4
    assert all(path.read_text().count("epoch 2 of 2") == 1 for path in tmp_path.rglob("run.log"))


def test_a_sweep_killed_three_times_ends_with_the_records_of_an_undisturbed_one(tmp_path):
    """SIGKILL at a random moment: between jobs, in an epoch, in an attack, while a file is written."""
    small = ["dataset.limit=100", "trainer.max_epochs=3", "attack@test_attack=flwc", ALONE]
    jobs = ["method=vanilla,universal_at", "seed=0,1,2", "thg=0.01,0.03", *small]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("src.train", "-m", *jobs, f"hydra.sweep.dir={whole}")
    sweep = command("src.train", "-m", *jobs, f"hydra.sweep.dir={killed}")
    for finished in (2, 5, 8):
        process = subprocess.Popen(sweep, cwd=REPOSITORY, env=environment(), stderr=subprocess.DEVNULL)
        while len(list(killed.rglob("results.json"))) < finished:
            time.sleep(0.05)
            assert process.poll() is None
        time.sleep(random.uniform(0, 2))
        process.kill()
        process.communicate()
    assert len(list(killed.rglob("results.json"))) < 12
    run("src.train", "-m", *jobs, f"hydra.sweep.dir={killed}")
    folders = sorted(path.parent.relative_to(whole) for path in whole.rglob("results.json"))
    assert folders == sorted(path.parent.relative_to(killed) for path in killed.rglob("results.json"))
    assert len(folders) == 12
    for folder in folders:
        first, second = (
            without_times(json.loads((root / folder / "results.json").read_text())) for root in (whole, killed)
        )
        assert first == second, folder


def test_a_job_that_another_process_holds_is_left_to_it_and_free_after_its_death(tmp_path):
    small = ["method=vanilla", "dataset.limit=100", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}"]
    hold = "import filelock, sys; filelock.FileLock(sys.argv[1]).acquire(); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / ".worstcase.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    done = run("src.train", *small)
    assert "another process is at work in" in done.stderr and not (tmp_path / "results.json").exists()
    holder.kill()
    holder.communicate()
    run("src.train", *small)
    assert (tmp_path / "results.json").exists()


def test_the_errors_of_a_sweep_stand_at_its_end_with_their_commands(tmp_path):
    small = ["method=vanilla", "dataset.limit=100", "trainer.max_epochs=1"]
    bad = "model.optimizer.lr=-1,1e-3,-2"
    done = run("src.train", "-m", *small, bad, f"hydra.sweep.dir={tmp_path}", fails=True)
    assert len(list(tmp_path.rglob("results.json"))) == 1
    end = done.stderr.splitlines()[-4:]
    for rate in (-1, -2):
        (place,) = [i for i, line in enumerate(end) if line.endswith(f": Invalid learning rate: {rate}")]
        assert end[place].startswith("failed") and f"model.optimizer.lr={rate} " in end[place + 1]
        assert "src.train -m " in end[place + 1] and end[place + 1].endswith(f"hydra.sweep.dir={tmp_path}")
    shown = run("src.report", "status=true", f"folders=[{tmp_path}]").stdout
    assert "1 finished, 2 failed" in shown and shown.count("failed    ") == 2
