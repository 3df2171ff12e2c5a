"""Odd folders, files, terminals and machines: a run ends well or in one line, and nothing is lost."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
from commands import REPOSITORY, command, environment, run
from PIL import Image

SMALL = [
    "method=vanilla",
    "trainer.max_epochs=1",
    "dataset.limit=100",
    "attack@test_attack=flwc",
    "callbacks.worst_case_at_test.besides=null",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a finished run that took a moment."""
    folder = tmp_path_factory.mktemp("small") / "run"
    run("src.train", *SMALL, f"hydra.run.dir={folder}")
    return folder


@pytest.fixture
def killed(small, tmp_path):
    """As if that run had been killed before its record was written."""
    return shutil.copytree(small, tmp_path / "killed", ignore=shutil.ignore_patterns("results.json"))


def test_a_folder_may_be_named_like_markup(tmp_path):
    folder = tmp_path / "a[/b] [red]x"
    done = run("src.train", *SMALL, f"hydra.run.dir='{folder}'")
    assert str(folder / "results.json") in done.stdout
    done = run("src.evaluate", f"run='{folder}'", "attack=flwc")
    assert str(folder / "evaluations") in done.stdout


def test_a_terminal_that_knows_ascii_alone(small):
    words = [f"run={small}", "attack=monte_carlo", "attack.instances=3"]
    done = subprocess.run(
        command("src.evaluate", *words),
        cwd=REPOSITORY,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"standard deviation" in done.stdout and done.stdout.isascii()


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NAME": "x",
}


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"RANK": "1"}, SLURM], ids=["local", "rank", "slurm"])
@pytest.mark.parametrize("devices", ["1", "auto"])
def test_a_rank_that_a_scheduler_set_is_not_ours(tmp_path, variables, devices):
    if devices == "auto":
        variables = {key: value for key, value in variables.items() if not key.startswith("SLURM")}
    words = [f"trainer.devices={devices}", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}"]
    done = run("src.train", *SMALL, *words, variables=variables)
    assert "results.json" in done.stdout and (tmp_path / "results.json").exists()


def file_size(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [100, 3000, 10_000, 100_000])
def test_a_disk_that_is_full_is_one_line_with_the_path(tmp_path, limit):
    """Files that may not grow end in the same errors as a disk that is full."""
    script = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); import runpy, sys; sys.argv = sys.argv[1:]"
    )
    script += "; sys.path.insert(0, '.'); runpy.run_module('src.train', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", script, "src.train", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: file_size(limit),
    )
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(tmp_path / "run") in error
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "run" / "results.json").exists()


def test_without_fcntl_as_on_windows(tmp_path):
    masked = (
        "import sys; sys.modules['fcntl'] = None; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); import runpy"
    )
    masked += "; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [sys.executable, "-c", masked, "src.train", *SMALL, f"hydra.run.dir={tmp_path}"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.json").exists()


def no_locks() -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    fcntl.flock = refuse


def test_a_file_system_without_locks_is_said(tmp_path):
    done = run("src.train", *SMALL, f"hydra.run.dir={tmp_path}", before=(no_locks,))
    assert "cannot be locked (No locks available): start no second process there" in done.stderr
    assert (tmp_path / "results.json").exists()


# ---- what a killed run left is damaged


def as_undisturbed(folder, small):
    first, second = (json.loads((at / "results.json").read_text()) for at in (small, folder))
    keys = ("clean_accuracy", "attacked_accuracy", "config", "epochs")
    return all(first[key] == second[key] for key in keys)


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_that_was_cut_off_is_trained_anew(killed, small, name):
    file = killed / "checkpoints" / name
    file.write_bytes(file.read_bytes()[:-100])
    done = run("src.train", *SMALL, f"hydra.run.dir={killed}")
    assert f"{file} was cut off when it was written, so training begins anew" in done.stderr
    assert as_undisturbed(killed, small)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"command": 1}', '{"command": "x", "config": [], "error": null}', None]
)
def test_a_damaged_job_file_is_named_with_the_remedy(killed, content):
    job = killed / "job.json"
    job.unlink() if content is None else job.write_text(content)
    before = {path: path.read_bytes() for path in (killed / "checkpoints").iterdir()}
    done = run("src.train", *SMALL, f"hydra.run.dir={killed}", fails=True)
    (error,) = done.stderr.strip().splitlines()
    assert "job.json" in error and f"or delete {killed / 'checkpoints'} to train anew" in error
    assert {path: path.read_bytes() for path in (killed / "checkpoints").iterdir()} == before
    run("src.report", "status=true", f"folders=[{killed}]")


def test_garbage_in_the_metrics_is_said_and_no_hindrance(killed, small):
    (killed / "metrics.csv").write_bytes(b'\x00\xff garbage,,"')
    done = run("src.train", *SMALL, f"hydra.run.dir={killed}")
    assert f"{killed / 'metrics.csv'} is no table of metrics any more" in done.stderr
    assert as_undisturbed(killed, small)


@pytest.mark.parametrize(
    "name", ["metrics.csv", "perturbation.safetensors", "checkpoints/best.ckpt", "job.json", "layers.png"]
)
def test_a_folder_with_files_of_the_users_is_left_as_it_is(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    done = run("src.train", *SMALL, f"hydra.run.dir={tmp_path}", fails=True)
    (error,) = done.stderr.strip().splitlines()
    assert str(file) in error and "choose another hydra.run.dir" in error
    assert file.read_text() == "mine" and not (tmp_path / "run.log").exists()


# ---- folders of runs


def test_linked_runs_are_found_once_and_loops_not_followed(small, tmp_path):
    root = tmp_path / "outputs"
    root.mkdir()
    (root / "linked").symlink_to(small)
    (root / "again").symlink_to(small)
    (root / "loop").symlink_to(root)
    (root / "nowhere").symlink_to(tmp_path / "none")
    shown = run("src.report", "status=true", f"folders=[{root}]").stdout
    finished = [line for line in shown.splitlines() if line.startswith("finished")]
    assert len([line for line in finished if "evaluations" not in line]) == 1 and "linked" in shown + "again"


def test_status_and_report_finish_whatever_lies_below(small, tmp_path):
    root = tmp_path / "outputs"
    shutil.copytree(small, root / "good")
    for name in ("folder", "pipe", "torn", "binary", "strange"):
        (root / name).mkdir(parents=True)
    (root / "folder" / "results.json").mkdir()
    (root / "folder" / "job.json").mkdir()
    os.mkfifo(root / "pipe" / "results.json")
    os.mkfifo(root / "pipe" / "job.json")
    (root / "torn" / "results.json").write_text('{"schema_version": 1,')
    (root / "torn" / "job.json").write_text('{"command": "x"')
    (root / "binary" / "results.json").write_bytes(b"\xff\xfe\x00")
    (root / "binary" / "job.json").write_bytes(b"\xff\xfe\x00")
    (root / "strange" / "job.json").write_text(
        json.dumps({"command": "\x1b[2J'", "config": {}, "error": "\x1b[31m"})
    )
    for words in (["status=true"], [f"out={tmp_path / 'report'}"]):
        done = run("src.report", *words, f"folders=[{root}]")
        for name in ("folder", "pipe", "torn", "binary"):
            assert done.stderr.count(str(root / name / "results.json")) == 1, done.stderr
        assert "Traceback" not in done.stderr and "\x1b" not in done.stdout
    assert (tmp_path / "report" / "index.html").exists()


def test_an_evaluation_is_about_one_run_though_another_finishes_meanwhile(small, tmp_path):
    """The newest run is looked up once, and the command in the record names it."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("worstcase"))
    shutil.copytree(small, tmp_path / "outputs" / "it's [first], =", ignore=shutil.ignore_patterns("evaluations"))
    script = (
        "import shutil, sys; sys.path.insert(0, '.'); from src import identity; newest = identity.newest_run\n"
        "def once():\n    found = newest(); shutil.copytree(found, 'outputs/second'); identity.newest_run = None; "
        "return found\n"
        "identity.newest_run = once; from src import cli, evaluate\n"
        "cli.start(evaluate.main, identity.naming_the_newest_run)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "attack=flwc"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("evaluations/*/results.json")
    assert file.is_relative_to(tmp_path / "outputs" / "it's [first], =")
    assert "first" in json.loads(file.read_text())["command"]


def test_a_sweep_names_its_own_failures_alone(tmp_path):
    """Though another's, of the same moment, lie in the same folder."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "job.json").write_text(json.dumps({"command": "the other's", "config": {}, "error": "not mine"}))
    words = ["-m", *SMALL, "dataset.limit=500", "model.optimizer.lr=1e30,1e-3", f"hydra.sweep.dir={tmp_path}"]
    done = run("src.train", *words, fails=True)
    assert done.stderr.count("failed    ") == 1 and "not mine" not in done.stderr
    assert not list(tmp_path.glob(".failed-*"))


def test_a_broken_image_is_named_in_one_line(tmp_path):
    """Though a worker process reads it."""
    for name in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(file)
    file.write_bytes(file.read_bytes()[:60])
    data = [f"data_dir={tmp_path}", "dataset.folder=images", "dataset.num_classes=2", "dataset.crop=32"]
    words = ["model=resnet18", "model.width=0.125", "dataset=imagefolder", *data]
    done = run("src.train", *words, f"hydra.run.dir={tmp_path / 'run'}", fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"error: {file} is no image that can be read: ") and len(error) < 400
    assert "Traceback" not in done.stderr


# ---- settings that only showed after training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_attack.steps=10.0"], "steps=10.0: must be a whole number"),
        (["attack@test_attack=monte_carlo", "test_attack.instances=1.5"], "instances=1.5: must be a whole number"),
        (["attack@test_attack=ensemble", "test_attack.rounds=1.5"], "rounds=1.5: must be a whole number"),
        (["model.optimizer.lr=nan"], "model.optimizer.lr=nan: must be a finite number"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null: must be a whole number"),
        (["+trainer.limit_test_batches=0"], "trainer.limit_test_batches=0: must be above 0"),
        (["+trainer.limit_val_batches=0.0"], "trainer.limit_val_batches=0.0: must be above 0"),
        (["+trainer.limit_test_batches=0.0001"], "trainer.limit_test_batches=0.0001: leaves no batch"),
        (["+trainer.limit_test_batches=x"], "trainer.limit_test_batches=x: must be above 0"),
        (["+trainer.check_val_every_n_epoch=x"], "trainer.check_val_every_n_epoch=x: must be at most"),
        (["callbacks.worst_case_at_test.thgs=[2]"], "thg=2: must be"),
        (["callbacks.worst_case_at_test.thgs=[-1]"], "thgs=-1: must be 0 or more"),
        (["callbacks.worst_case_at_test.thgs=x"], "thgs=x: must be a list"),
        (["method.monitor=foo"], "method.monitor=foo: must be val/accuracy or val/attacked_accuracy"),
        (["~callbacks.worst_case_per_epoch", "method.monitor=val/attacked_accuracy"], "must be val/accuracy"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run: leaves no checkpoint"),
        (["+trainer.check_val_every_n_epoch=9"], "must be at most trainer.max_epochs=1"),
        (["test_attack.objective=into_class:10"], "into_class:10: there are 10 classes"),
        (["model.weight_bits=1024"], "weight_bits=1024: must be a whole number from 1 to 16"),
    ],
)
def test_a_setting_is_wrong_before_training(tmp_path, words, message):
    done = run("src.train", *SMALL, *words, f"hydra.run.dir={tmp_path}", fails=True)
    assert message in done.stderr.strip().splitlines()[-1]
    assert "epoch 1" not in done.stderr and not (tmp_path / "checkpoints").exists()
