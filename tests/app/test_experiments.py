"""Every experiment composes at both scales, and the smallest jobs of the cheap ones run."""

import json
import os
import shlex
from functools import cache
from types import SimpleNamespace

import pytest
from commands import REPOSITORY, run, shorten_ensembles
from hydra import compose
from hydra.types import RunMode
from hydra.utils import instantiate
from records import record

from worstcase.app import doors, naming, ranges, status, sweeps
from worstcase.app.state import Begun
from worstcase.paper import SECTIONS

EXPERIMENTS = sorted(path.stem for path in (REPOSITORY / "conf" / "experiment").iterdir())
OF_PROJECT = {"methods", "monte_carlo"}  # sections that are not the paper's
SMALL = ["case=quick/lenet", "seed=0", "dataset.limit=100", "trainer.max_epochs=1"]


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
        ranges.check(naming.completed(cfg))
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


def test_the_command_of_a_job_names_its_folder(monkeypatch):
    places = ["hydra.sweep.dir=out", "hydra.sweep.subdir=x-${seed}"]
    overrides = SimpleNamespace(task=["seed=0"], hydra=["hydra.mode=MULTIRUN", *places])
    runtime = SimpleNamespace(config_sources=[])
    told = SimpleNamespace(mode=RunMode.MULTIRUN, overrides=overrides, runtime=runtime)
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
    for job in jobs[:3]:
        job.folder.mkdir(parents=True)
    record().save(jobs[0].folder)
    (jobs[2].folder / "results.json").write_text("{}")
    Begun("the command", {}, "the error").save(jobs[1].folder)
    lines = list(status.of_jobs(jobs))
    assert lines[0] == f"finished  {jobs[0].folder}"
    assert lines[1] == f"failed    {jobs[1].folder}: the error\n          the command"
    broken = f"broken    {jobs[2].folder / 'results.json'} holds no record of a run: its schema_version is not 1; "
    assert lines[2] == f"{broken}delete it to run the job again\n          {jobs[2].command}"
    assert all(line.startswith("missing   ") for line in lines[3:-1]) and jobs[3].command in lines[3]
    assert lines[-1] == "1 of 20 jobs finished, 1 failed, 1 broken"


def test_status_of_an_experiment_of_the_users_says_the_folder_of_its_settings(tmp_path):
    (tmp_path / "experiment").mkdir()
    sweep = "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}"
    (tmp_path / "experiment" / "mine.yaml").write_text(sweep)
    lines = run("src.status", "--config-dir", tmp_path, "sweep=mine").stdout.splitlines()
    words = ["python", "-m", "src.train", "--config-dir", os.path.relpath(tmp_path, REPOSITORY)]
    said = [shlex.split(line) for line in lines if "src.train" in line]
    assert said == [[*words, f"seed={seed}", "experiment=mine", "scale=quick"] for seed in (0, 1)]


@pytest.mark.parametrize(("dataset", "moves"), [("mnist5k", False), ("mnist", False), ("imagenet", True)])
def test_where_the_data_lie_is_no_part_of_a_job_unless_it_tells_which_they_are(hydra, dataset, moves):
    here, there = (folders(f"dataset={dataset}", f"data_dir={place}") for place in ("here", "there"))
    assert (here != there) == moves
