"""Odd folders, files, terminals and machines: a run ends well or in one line, and nothing is lost."""

import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from commands import QUICK, files, refusal, run, without_times
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from worstcase.app.resume import go_on_with_metrics

SMALL = ["method=vanilla", *QUICK, "dataset.limit=100"]


@pytest.fixture(scope="session")
def small(made_once):
    """The folder of a finished run that took a moment; no test may write to it."""

    def train(folder):
        run("src.train", *SMALL, f"hydra.run.dir={folder / 'run'}")

    return made_once("small", train) / "run"


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


def ascii_alone() -> None:
    """As PYTHONIOENCODING=ascii has it."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")


def test_a_terminal_that_knows_ascii_alone(small, tmp_path):
    words = [f"run={small}", "attack=monte_carlo", "attack.instances=3", f"hydra.run.dir={tmp_path}"]
    done = run("src.evaluate", *words, before=(ascii_alone,))
    assert "standard deviation" in done.stdout and done.stdout.isascii()


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NAME": "x",
}


RANKS = {"LOCAL_RANK": "1", "RANK": "1"}


@pytest.mark.parametrize(("variables", "devices"), [(RANKS, "auto"), (SLURM, "1")], ids=["ranks", "slurm"])
def test_a_rank_that_a_scheduler_set_is_not_ours(tmp_path, variables, devices):
    words = [f"trainer.devices={devices}", "trainer.accelerator=cpu", f"hydra.run.dir={tmp_path}"]
    done = run("src.train", *SMALL, *words, variables=variables)
    assert "results.json" in done.stdout and (tmp_path / "results.json").exists()


def may_not_grow(limit: int, screen: Path) -> None:
    """Files end at a size, but for what is on screen."""
    sys.stderr = screen.open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("limit", [100, 3000, 10_000, 100_000])
def test_a_disk_that_is_full_is_one_line_with_the_path(tmp_path, limit):
    """Files that may not grow end in the same errors as a disk that is full."""
    screen = tmp_path / "screen"
    os.mkfifo(screen)
    reader = os.open(screen, os.O_RDONLY | os.O_NONBLOCK)
    words = [*SMALL, f"hydra.run.dir={tmp_path / 'run'}"]
    run("src.train", *words, before=(may_not_grow, limit, screen), fails=True)
    said = os.read(reader, 2**16).decode()
    os.close(reader)
    error = said.strip().splitlines()[-1]
    assert error.startswith("error: ") and str(tmp_path / "run") in error
    assert "Traceback" not in said and len(said.strip().splitlines()) <= 3
    assert not (tmp_path / "run" / "results.json").exists()


def no_fcntl() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
        del sys.modules[name]  # PyTorch has imported it
    sys.modules["fcntl"] = None


def test_without_fcntl_as_on_windows(tmp_path):
    run("src.train", *SMALL, f"hydra.run.dir={tmp_path}", before=(no_fcntl,))
    assert (tmp_path / "results.json").exists()


def no_locks() -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    fcntl.flock = refuse


def test_a_file_system_without_locks_is_said(tmp_path):
    done = run("src.train", *SMALL, f"hydra.run.dir={tmp_path}", before=(no_locks,))
    assert "cannot be locked (No locks available): do not start a second process there" in done.stderr
    assert (tmp_path / "results.json").exists()


# ---- what a killed run left is damaged


def as_undisturbed(folder, small):
    first, second = (without_times(json.loads((at / "results.json").read_text())) for at in (small, folder))
    return first == second


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_that_was_cut_off_is_trained_anew(killed, small, name):
    file = killed / "checkpoints" / name
    file.write_bytes(file.read_bytes()[:-100])
    done = run("src.train", *SMALL, f"hydra.run.dir={killed}")
    assert f"{file} was cut off when it was written, so training begins anew" in done.stderr
    assert as_undisturbed(killed, small)


DAMAGED = ["", "{", "[]", '{"command": 1}', '{"command": "x", "config": [], "error": null}', None]


def test_a_damaged_job_file_is_named_with_the_remedy(killed, tmp_path):
    for number, content in enumerate(DAMAGED):
        folder = shutil.copytree(killed, tmp_path / "damaged" / str(number))
        job = folder / "job.json"
        job.unlink() if content is None else job.write_text(content)
        before = files(folder / "checkpoints")
        done = run("src.train", *SMALL, f"hydra.run.dir={folder}", fails=True)
        (error,) = done.stderr.strip().splitlines()
        assert "job.json" in error and f"or delete {folder / 'checkpoints'} to train anew" in error
        assert files(folder / "checkpoints") == before
    run("src.status", f"folders=[{tmp_path / 'damaged'}]")


def test_garbage_in_the_metrics_is_said_and_no_hindrance(killed, small):
    (killed / "metrics.csv").write_bytes(b'\x00\xff garbage,,"')
    done = run("src.train", *SMALL, f"hydra.run.dir={killed}")
    assert f"{killed / 'metrics.csv'} is no table of metrics any more" in done.stderr
    assert as_undisturbed(killed, small)


def test_a_resumed_run_keeps_metrics_that_tell_no_epoch(tmp_path):
    """As those of LearningRateMonitor."""
    torch.save({"global_step": 3}, tmp_path / "last.ckpt")
    (tmp_path / "metrics.csv").write_text("epoch,lr,step\n,0.2,0\n0,,2\n,0.1,3\n1,,5\n")
    logger = CSVLogger(tmp_path, name="", version="")
    go_on_with_metrics([logger], tmp_path / "last.ckpt")
    assert logger.experiment.metrics == [{"lr": "0.2", "step": "0"}, {"epoch": "0", "step": "2"}]


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
    shown = run("src.status", f"folders=[{root}]").stdout
    finished = [line for line in shown.splitlines() if line.startswith("finished")]
    (line,) = [line for line in finished if "evaluations" not in line]
    assert line.endswith(("linked", "again"))


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
    for words in (["src.status"], ["src.report", f"out={tmp_path / 'report'}"]):
        done = run(*words, f"folders=[{root}]")
        for name in ("folder", "pipe", "torn", "binary"):
            assert done.stderr.count(str(root / name / "results.json")) == 1, done.stderr
        assert "Traceback" not in done.stderr and "\x1b" not in done.stdout
    assert (tmp_path / "report" / "index.html").exists()


def another_finishes_once_it_was_looked_up() -> None:
    from worstcase.app import naming

    newest = naming.newest_run

    def once():
        found = newest()
        shutil.copytree(found, "outputs/second")
        naming.newest_run = None
        return found

    naming.newest_run = once


def test_an_evaluation_is_about_one_run_though_another_finishes_meanwhile(small, tmp_path):
    """The newest run is looked up once, and the command in the record names it."""
    shutil.copytree(small, tmp_path / "outputs" / "it's [first], =", ignore=shutil.ignore_patterns("evaluations"))
    run("worstcase", "evaluate", "attack=flwc", at=tmp_path, before=(another_finishes_once_it_was_looked_up,))
    (file,) = tmp_path.rglob("evaluations/*/results.json")
    assert file.is_relative_to(tmp_path / "outputs" / "it's [first], =")
    assert "first" in json.loads(file.read_text())["command"]


@pytest.mark.slow
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
    data = [f"data_dir={tmp_path}", "dataset.folder=images", "dataset.num_classes=2", "dataset.crop=28"]
    data += ["dataset.channels=1", "dataset.mean=[0]", "dataset.std=[1]", "dataset.resize=null"]
    words = ["method=vanilla", "model=mlp", "dataset=imagefolder", *data, "dataset.num_workers=1"]
    done = run("src.train", *words, f"hydra.run.dir={tmp_path / 'run'}", fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"error: cannot read the image {file}: ") and len(error) < 400
    assert "Traceback" not in done.stderr


# ---- settings that only showed after training


STOP = "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:%s}"
LATE_VALIDATION = ["trainer.max_epochs=2", "+trainer.check_val_every_n_epoch=2"]
PER_DEVICE = ["attack@test_attack=monte_carlo", "test_attack.weight_bits=4", "test_attack.device_bits=2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.optimizer.lr=nan"], "model.optimizer.lr=nan: must be a finite number"),
        (["model.optimizer.lr=null"], "model.optimizer.lr=null: must be a number, 0 or more"),
        (["model.optimizer.lr=-1"], "model.optimizer.lr=-1: must be a number, 0 or more"),
        (["trainer.max_epochs=null"], "trainer.max_epochs=null: must be a whole number"),
        (["+trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: must be above 0"),
        (["+trainer.limit_train_batches=x"], "trainer.limit_train_batches=x: must be above 0"),
        (["+trainer.limit_test_batches=1"], "trainer.limit_test_batches=1: attacks see all images; for fewer say"),
        (["+trainer.limit_test_batches=0.5"], "trainer.limit_test_batches=0.5: attacks see all images"),
        (["+trainer.limit_test_batches=x"], "trainer.limit_test_batches=x: attacks see all images"),
        (["+trainer.limit_val_batches=0.0"], "trainer.limit_val_batches=0.0: attacks see all images"),
        (["+trainer.limit_val_batches=3"], "trainer.limit_val_batches=3: attacks see all images"),
        (["+trainer.overfit_batches=1"], "trainer.overfit_batches=1: attacks see all images; for fewer say data"),
        (["+trainer.overfit_batches=0.5"], "trainer.overfit_batches=0.5: attacks see all images"),
        (["+trainer.strategy=ddp_fork"], "trainer.strategy=ddp_fork: results stay in the processes"),
        (["share=swim"], "share=swim: needs pulses=NUMBER"),
        (["+trainer.check_val_every_n_epoch=x"], "trainer.check_val_every_n_epoch=x: must divide"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run: leaves no checkpoint"),
        (
            ["+trainer.accumulate_grad_batches=0"],
            "trainer.accumulate_grad_batches=0: must be a whole number, 1 or",
        ),
        (["+trainer.val_check_interval=0"], "trainer.val_check_interval=0: must be above 0"),
        (
            ["+trainer.gradient_clip_val=-1"],
            "trainer.gradient_clip_val=-1: must be 0, which does not clip, or more",
        ),
        (["+trainer.reload_dataloaders_every_n_epochs=1"], "a resumed run would see its data in another order"),
        (["+trainer.callbacks=[]"], "trainer.callbacks: the command sets it itself; add one with +callbacks.NAME"),
        (["+trainer.logger=false"], "trainer.logger: the command sets it itself; choose one with logger=NAME"),
        (["+trainer.precision=bf16-true"], "trainer.precision=bf16-true: must be 32-true, 16-mixed or bf16-mixed"),
        (["+model.width=abc"], "model.width=abc: Input should be a valid number"),
        (["+trainer.check_val_every_n_epoch=2"], "must divide trainer.max_epochs=1"),
    ],
)
def test_a_setting_is_wrong_before_a_folder_is_made(words, message):
    assert message in refusal("train", *SMALL, *words)


def test_what_limits_nothing_is_fine():
    words = ["limit_test_batches=1.0", "limit_val_batches=null", "overfit_batches=0", "limit_train_batches=2"]
    words += ["val_check_interval=0.5", "gradient_clip_val=0", "reload_dataloaders_every_n_epochs=0"]
    assert refusal("train", *SMALL, *[f"+trainer.{word}" for word in words]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_attack.steps=10.0"], "steps=10.0: must be a whole number"),
        (["attack@test_attack=monte_carlo", "test_attack.instances=1.5"], "instances=1.5: must be a whole number"),
        (["attack@test_attack=ensemble", "test_attack.rounds=1.5"], "rounds=1.5: must be a whole number"),
        (["+trainer.limit_train_batches=0.0001"], "trainer.limit_train_batches=0.0001: leaves no batch"),
        (["attack@test_attack=lwc", "test_attack.epochs=0"], "test_attack.epochs=0: must be 1 or more"),
        (["suite=default", "suite.ensemble.rounds=0"], "suite.ensemble.rounds=0: must be 1 or more"),
        (["suite=default", "suite.ensemble=null", "suite.test=null"], "suite: a run needs at least one attack"),
        (["method.monitor=foo"], "method.monitor=foo: must be val/accuracy or val/attacked_accuracy"),
        (["method.monitor=train/loss"], "method.monitor=train/loss: must be val/accuracy or val/att"),
        (["~callbacks.worst_case_per_epoch", "method.monitor=val/attacked_accuracy"], "must be val/accuracy"),
        (["+callbacks.mine={_target_:lightning.pytorch.callbacks.ModelCheckpoint,save_last:true}"], "last.ckpt"),
        ([STOP % "val/acc"], "callbacks: monitor=val/acc: must be val/accuracy or val/attacked_accuracy"),
        ([STOP % "val/accuracy"], "EarlyStopping with mode=min on val/accuracy, of which more is better"),
        (
            ["suite=single", "attack@test_attack=ensemble", "test_attack.budget=2"],
            "budget=2: the first member needs",
        ),
        (
            ["attack@val_attack=ensemble", "val_attack.budget=2", *LATE_VALIDATION],
            "budget=2: the first member needs",
        ),
        ([*PER_DEVICE, "thg=rram_milo2021"], "device_bits=2: only where thg are numbers"),
        (
            ["+callbacks.swa={_target_:lightning.pytorch.callbacks.StochasticWeightAveraging,swa_lrs:0.01}"],
            "StochasticWeightAveraging averages after the last validation",
        ),
        (
            [
                "+callbacks.ema={_target_:lightning.pytorch.callbacks.EMAWeightAveraging,update_starting_at_epoch:0}"
            ],
            "EMAWeightAveraging averages after the last validation",
        ),
        (["model.weight_bits=1024"], "weight_bits=1024: must be a whole number from 1 to 16"),
    ],
)
def test_a_setting_is_wrong_before_training(tmp_path, words, message):
    done = run("src.train", *SMALL, *words, f"hydra.run.dir={tmp_path}", fails=True)
    assert message in done.stderr.strip().splitlines()[-1]
    assert "epoch 1" not in done.stderr and not (tmp_path / "checkpoints").exists()


def test_a_training_that_ends_before_it_validates_says_so(tmp_path):
    seldom = ["+trainer.check_val_every_n_epoch=null", "+trainer.val_check_interval=1000"]
    done = run("src.train", *SMALL, *seldom, f"hydra.run.dir={tmp_path}", fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: training ended before its first validation")
    assert "trainer.max_steps" in error and "trainer.val_check_interval" in error


@pytest.mark.parametrize(("words", "steps", "first"), [([], 1, 3), (LATE_VALIDATION, 4, 6)], ids=["one", "late"])
def test_too_few_steps_for_a_validation_are_refused_before_the_first(words, steps, first, tmp_path):
    words = [*SMALL, *words, f"+trainer.max_steps={steps}", f"hydra.run.dir={tmp_path}"]
    done = run("src.train", *words, fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error == f"error: trainer.max_steps={steps}: raise it; the first validation is after {first}"
    assert "epoch 1" not in done.stderr and not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_training_that_stopped_early_and_was_killed_while_it_was_tested_is_not_trained_on(tmp_path):
    stop = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/accuracy", "mode": "max"}
    settings = [
        f"+callbacks.stop.{key}={value}" for key, value in (stop | {"patience": 1, "min_delta": 1}).items()
    ]
    settings = [*SMALL, "trainer.max_epochs=4", "callbacks.worst_case_per_epoch=null", *settings]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("src.train", *settings, f"hydra.run.dir={whole}")
    shutil.copytree(whole, killed, ignore=shutil.ignore_patterns("results.json"))
    done = run("src.train", *settings, f"hydra.run.dir={killed}")
    assert "epoch 3" not in done.stderr and as_undisturbed(killed, whole)
    assert json.loads((killed / "results.json").read_text())["epochs"] == 2
