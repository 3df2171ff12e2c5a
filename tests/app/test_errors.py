"""Bad settings and files: one line that says what is wrong and what to do, and nothing written or lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from commands import REPOSITORY, environment, refusal, run

from worstcase.app.errors import in_one_line
from worstcase.app.folders import check_place
from worstcase.models import LeNet

BAD = {
    "thg=-0.1": "thg=-0.1: must be a finite number, 0 or more",
    "thg='0.03'": "thg='0.03': is text, since it is in quotes; say thg=0.03",
    "thg=rram": "thg=rram: must be a finite number, 0 or more; one of pcm_joshi2020, ",
    "thg={fc*:rram}": "presets of one number are chosen with th_g=NAME",
    "thg={fc*:-1}": "thg=-1.0: must be a finite number, 0 or more",
    "thg={}": "thg={}: must be a number, or patterns",
    "thg=[0.01,0.02]": "a training has one; sweep over several with -m thg=0.01,0.03",
    "thg=nowhere.csv": "there is no table of a tolerance at nowhere.csv",
    "sigmas=3": "sigmas=3: thg has no standard deviations",
    "th_g=rram_wan2022 sigmas=99": "sigmas=99: its tolerance would be more than the largest conductance",
    "mapping.pair=3": "mapping.pair=3: must be true or false",
    "mapping.device_bits=2": "mapping.device_bits=2: must divide model.weight_bits, which is null",
    "mapping.device_bits=3 model.weight_bits=4": "must divide model.weight_bits, which is 4",
    "mapping.device_bits=0": "mapping.device_bits=0: must be a whole number, 1 or more",
    "mapping=5": "mapping=5: say mapping.NAME=VALUE; there are pair, device_bits, cut_off",
    "programming=null pulses=3": "programming=None: say programming.NAME=VALUE; there are sigma, ",
    "programming.sigma=0.2": "programming.sigma=0.2: needs pulses=NUMBER",
    "model.optimizer=null": "model.optimizer=None: choose one of the group's files with model=NAME",
    "model=torchvision": "model.arch is needed: model.arch=VALUE",
    "dataset=imagefolder": "dataset.num_classes is needed: dataset.num_classes=VALUE",
    "thg=nan": "thg=nan: must be a finite number",
    "thg=inf": "thg=inf: must be a finite number",
    "thg=2": "thg=2.0: must be at most 1, a fraction of each layer's full scale",
    "full_scale=half": "must be layer_max or unit",
    "trainer.max_epochs=-3": "trainer.max_epochs=-3: must be a whole number, 1 or more",
    "seed=abc": "seed: Value 'abc' of type 'str' could not be converted to Integer",
    "seed=-1": "seed=-1: must be 0 to",
    "dataset.batch_size=0": "dataset.batch_size=0: must be a whole number, 1 or more",
    "dataset.limit=1": "dataset.limit=1: must be a whole number, 2 or more",
    "method=universal_at method.members=1.5": "method.members=1.5: must be a whole number, 1 or more",
    "method=adversarial method.attack=lwc": "choose one of the group's files with attack@method.attack=NAME",
    "model.weight_bits=0": "model.weight_bits=0: must be a whole number, 1 or more",
    "method=nope": "Could not find 'method/nope' Available options in 'method': adversarial atrice",
    "attack@test_attack=nope": "Could not find 'attack/nope' Available options in 'attack': ensemble ",
    "attack=nope": "attack@test_attack",
    "test_attack=lwc": "choose one of the group's files with attack@test_attack=NAME",
    "method.membres=3": "there is no setting method.membres; did you mean members?",
    "tgh=0.1": "there is no setting tgh; did you mean thg?",
    "+thgs=1": "there is no setting thgs; did you mean thg?",
    "+programming.sig=1": "there is no setting programming.sig; did you mean sigma?",
    "+mapping.pairs=true": "there is no setting mapping.pairs; did you mean pair?",
    "th_g=0.02": "th_g=0.02: must be one of fefet, paper, ",
    "suite=null": "suite=null: must be one of compared, default, ",
    "method=[vanilla,va]": "method=[vanilla,va]: must be one of adversarial, atrice, ",
    "trainer.precision=16": "another of Lightning's is added by +trainer.precision=VALUE",
    "thg=[0.1": "no viable alternative at input '[0.1'",
}


AS_COMMANDS = ("thg=-0.1", "seed=abc", "method.membres=3", "method=[vanilla,va]")
"""One of each kind: a range, a type, a name, a group."""


@pytest.mark.parametrize("override", [words for words in BAD if words not in AS_COMMANDS])
def test_bad_settings_are_named_in_one_line(override):
    assert BAD[override] in (said := refusal("train", *override.split()))
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("override", AS_COMMANDS)
def test_bad_settings_are_one_line_before_anything_is_written(override, tmp_path):
    folder = tmp_path / "run"
    done = run("src.train", *override.split(), f"hydra.run.dir={folder}", fails=True)
    assert BAD[override] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=mnist", "data_dir=nowhere"], "no MNIST below nowhere"),
        (["dataset=cifar10", "data_dir=nowhere"], "no CIFAR-10 in nowhere/cifar-10-batches-py"),
        (["model=convnet"], "the network does not take inputs of 1x28x28"),
        (["model.net.num_classes=7"], "but the data set has 10 classes"),
        (["net=nowhere:Net"], "net=nowhere:Net: must be module:callable"),
        (["net=os:getcwd"], "must return a torch.nn.Module, not str"),
        (["init_from=nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["method=atrice", "method.alpha=2"], "method.alpha=2: must be 0..1"),
        (["layers=[head]"], "no layer with a weight is named 'head'; there are conv1, conv2, fc1, fc2, fc3"),
        (["method=atrice", "val_attack.steps=0"], "steps=0: must be 1 or more"),
        (["test_attack.objective=into_class:10"], "into_class:10: there are 10 classes, numbered from 0"),
        (["~callbacks.worst_case_at_test"], "a run needs one worstcase.callbacks.WorstCaseAtTest"),
    ],
)
def test_what_only_the_job_can_tell_stops_it_before_training(overrides, message, tmp_path):
    done = run("src.train", *overrides, f"hydra.run.dir={tmp_path}", fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert {path.name for path in tmp_path.iterdir()} == {"run.log", "job.json", ".worstcase.lock"}
    assert "Traceback" in (tmp_path / "run.log").read_text()


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    done = run("src.train", os.fsdecode(b"init_from='a\xff.pt'"), f"hydra.run.dir={folder}", fails=True)
    assert r"error: init_from='a\udcff.pt': has a byte that is not UTF-8" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not folder.exists()


def test_arguments_in_a_message_become_settings_and_paths_stay():
    settings = {"attack": {"steps": 3}, "model": {"width": 1}}
    said = "no file ../lr=0.1/x.ckpt, width=2/steps=3.pt or /data/lr=0.1,steps=5/chip.npz"
    assert in_one_line(FileNotFoundError(said), settings) == said
    assert in_one_line(ValueError("steps=0: lower lr= (lr=)"), settings) == (
        "attack.steps=0: lower model.optimizer.lr= (model.optimizer.lr=)"
    )


def test_a_diverging_training_stops_with_step_and_cause(tmp_path):
    done = run("src.train", "model.optimizer.lr=1e30", f"hydra.run.dir={tmp_path}", fails=True)
    error = done.stderr.strip().splitlines()[-1]
    assert "the loss is nan at step 1 (epoch 0)" in error and "lower the learning rate" in error
    assert not (tmp_path / "results.json").exists()


def test_a_file_where_the_folder_should_be_stays_as_it_is(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "below"):
        done = run("src.train", f"hydra.run.dir={folder}", fails=True)
        assert done.stderr.strip() == f"error: {file} is a file, not a folder; choose another hydra.run.dir"
    assert file.read_text() == "mine"


def test_a_place_where_nothing_can_be_made_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check_place(tmp_path)  # a finished job there is shown
    with pytest.raises(PermissionError, match=rf"^{tmp_path} cannot be written to; choose another"):
        check_place(tmp_path / "run" / "evaluations")


def test_an_evaluation_of_a_run_that_died_says_how_to_make_one(trained, tmp_path):
    died = shutil.copytree(
        trained, tmp_path / "died", ignore=shutil.ignore_patterns("results.json", "evaluations")
    )
    done = run("src.evaluate", f"run={died}", fails=True)
    assert f"no finished run in {died}" in done.stderr
    assert "it was killed, or is at work); finish it with: python -m src.train method=vanilla" in done.stderr
    assert not (died / "evaluations").exists()
    nowhere = run("src.evaluate", f"run={tmp_path / 'nowhere'}", fails=True).stderr
    assert "no finished run" in nowhere and "make one with: python -m src.train" in nowhere
    assert f"below it there is {trained}" in run("src.evaluate", f"run={trained.parent}", fails=True).stderr


def test_an_evaluation_names_a_bad_attack_or_setting(trained):
    for override, message in {
        "thg=[0.1,-1]": "thg=-1: must be a finite number, 0 or more",
        "attack=nope": "Available options in 'attack': ensemble ensemble_short flwc lwc lwc_margin",
        "dataset.batch_sise=3": "did you mean batch_size?",
    }.items():
        done = run("src.evaluate", f"run={trained}", override, fails=True)
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    for override, message in {
        "thg=[]": "must be a number, or a list",
        "thg=much": "thg=much: must be a finite number",
        "diagnosis=long": "diagnosis=long: must be short or full",
        "certificate=exact": "certificate=exact: must be auto or interval or linear or null",
        "thg=1.5": "thg=1.5: must be at most 1",
        "dataset.download=true": "there is no setting dataset.download",
        "+member=3": "there is no setting member; there are run, checkpoint, ",
    }.items():
        assert message in refusal("evaluate", f"run={trained}", override)


@pytest.mark.parametrize("command", ["src.report", "src.status"])
def test_report_and_status_name_what_they_cannot_take(command, tmp_path):
    for words, message in {
        "+out_dir=x": "there is no setting out_dir",
        "folders=[]": "must be one folder",
    }.items():
        assert message in run(command, words, at=REPOSITORY, fails=True).stderr
    (tmp_path / "job.json").write_text("{}")
    if command == "src.status":
        assert "it is not the file of a job" in run(command, f"folders=[{tmp_path}]").stderr


@pytest.mark.parametrize("kind", ["missing", "truncated", "of another network"])
def test_an_evaluation_refuses_a_bad_checkpoint(trained, tmp_path, kind):
    file = tmp_path / "weights.ckpt"
    if kind == "truncated":
        file.write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes()[:10_000])
    elif kind == "of another network":
        torch.save(LeNet(num_classes=3).state_dict(), file)
    done = run(
        "src.evaluate",
        f"run={trained}",
        f"checkpoint={file}",
        f"hydra.run.dir={tmp_path / 'out'}",
        fails=True,
    )
    error = done.stderr.strip().splitlines()[-1]
    message = {
        "missing": "no checkpoint at",
        "truncated": "cannot read the checkpoint",
        "of another network": "does not belong to this LeNet",
    }
    assert error.startswith("error: ") and message[kind] in error and str(file) in error
    assert not (tmp_path / "out" / "results.json").exists()


# ---- start-up


IN_TURN = """
import json, os, runpy, sys

_, module, commands = sys.argv
ends = []
for words in json.loads(commands):
    sys.argv = [module, *words]
    os.environ.pop("HYDRA_FULL_ERROR", None)  # of the command before
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        ends.append(end.code)
print(json.dumps([ends, list(sys.modules)]))
"""


@pytest.mark.parametrize("module", ["src.train", "src.evaluate"])
def test_help_and_bad_settings_import_no_pytorch(module):
    commands = [["--help"], ["--cfg", "job"], ["thg=-1"], ["method=nope"], ["sed=1"]]
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, module, json.dumps(commands)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    ends, imported = json.loads(done.stdout.splitlines()[-1])
    assert ends[:2] == [0, 0] and all(end.startswith("error: ") for end in ends[2:]), ends
    assert "hydra" in imported
    assert not set(imported) & {"torch", "lightning", "torchmetrics", "torchvision", "matplotlib"}
