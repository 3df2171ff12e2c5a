"""Runs from somebody else: whatever their records say, nothing runs, is resolved, or is downloaded."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from commands import run
from torch import nn
from torchvision.datasets import MNIST
from torchvision.models import _api

from worstcase import load_run
from worstcase.app.folders import check_folder
from worstcase.evaluation.record import Record
from worstcase.runs import build

TEMPLATE = "{{{{ cycler.__init__.__globals__.os.popen('touch {pwned}').read() }}}}"
LENET = "worstcase.models.LeNet"


def calls(pwned):
    """What ran when a record's data set was given to Hydra; each leaves a file."""
    return {
        "jinja2": {
            "_target_": "jinja2.Template.render",
            "self": {"_target_": "jinja2.Template", "source": TEMPLATE.format(pwned=pwned)},
        },
        "sympy": {"_target_": "sympy.sympify", "a": f"__import__('os').mknod('{pwned}')"},
        "pathlib": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [pwned]}},
        "numpy": {"_target_": "numpy.savetxt", "fname": pwned, "X": [1.0]},
        "torch": {"_target_": "torch.save", "obj": 1, "f": pwned},
        "args": {"_target_": "os.mknod", "_args_": [pwned]},
        "partial": {"_target_": "os.mknod", "_partial_": True, "path": pwned},
        "system": {"_target_": "os.system", "command": f"touch {pwned}"},
    }


def planted(config, pwned):
    """Configurations, by what is wrong with them."""
    dataset, model = config["dataset"], config["model"]
    for name, call in calls(pwned).items():
        yield f"{name} as a number of classes", {"dataset": {**dataset, "num_classes": call}}
        yield f"{name} as the data set", {"dataset": call}
        yield f"{name} as the network", {"model": {**model, "net": call}}
    call = calls(pwned)["args"]
    yield "in a list", {"dataset": {**dataset, "num_classes": [{"deep": [call]}]}}
    yield "in a network's argument", {"model": {**model, "net": {**model["net"], "num_classes": call}}}
    yield "in a list of layers", {"exclude": [call]}
    for target in (
        "worstcase.evaluation.record.write_json",
        "worstcase.models.lenet.torch.load",
        "worstcase.methods.Vanilla",
        "torchvision.models.get_weight",
        "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict",
        "torchvision.models.detection.fasterrcnn_resnet50_fpn",
    ):
        yield target, {"model": {**model, "net": {"_target_": target}}}
    yield "arguments of another kind", {"model": {**model, "net": {"_target_": LENET, "variant": [1], "x": 2}}}
    yield "the user's own network", {"net": "os:getcwd"}
    own = {"of": "os:abort", "num_classes": 10}
    yield "the user's own data", {"dataset": {"_target_": "worstcase.data.OwnDataModule", **own}}
    yield "the same by another name", {"dataset": {"_target_": "worstcase.data.own.OwnDataModule", **own}}
    yield "a data set of another kind", {"dataset": {"_target_": LENET}}


@pytest.fixture(scope="session")
def hostile(trained, tmp_path_factory):
    """Folders of runs with what is planted in each, and the file that would tell that something ran."""
    root = tmp_path_factory.mktemp("hostile")
    pwned = root / "PWNED"
    record = json.loads((trained / "results.json").read_text())
    folders = {}
    for number, (name, changes) in enumerate(planted(record["config"], str(pwned))):
        folder = shutil.copytree(trained, root / f"run{number}", ignore=shutil.ignore_patterns("evaluations"))
        (folder / "results.json").write_text(json.dumps(record | {"config": {**record["config"], **changes}}))
        folders[name] = folder
    return folders, pwned


def test_load_run_of_a_hostile_record_is_a_value_error(hostile):
    folders, pwned = hostile
    for name, folder in folders.items():
        with pytest.raises(ValueError, match=r"not built from a record|cannot be built|no record|if you trust it"):
            load_run(folder)
        assert not pwned.exists(), name


@pytest.mark.parametrize("name", ["jinja2 as a number of classes", "args as the data set", "in a list"])
def test_evaluate_of_a_hostile_record_is_one_line(hostile, name):
    folders, pwned = hostile
    done = run("src.evaluate", f"run={folders[name]}", "attack=flwc", fails=True)
    assert len(done.stderr.strip().splitlines()) <= 2  # the job's command, and the error
    assert "is not built from a record" in done.stderr
    assert not pwned.exists()


def is_record(folder):
    try:
        Record.load(folder)
    except ValueError:
        return False
    return True


def test_evaluate_of_every_hostile_record_runs_nothing(hostile):
    """All as the jobs of one sweep, which is faster, but for one that is refused before it begins."""
    folders, pwned = hostile
    runs = {name: f"'{folder}'" for name, folder in folders.items() if is_record(folder)}
    own = runs.pop("the user's own network")
    assert len(runs) > 30
    done = run("src.evaluate", "-m", f"run={','.join(runs.values())}", "attack=flwc", fails=True)
    assert done.stderr.count("failed    ") == len(runs)
    done = run("src.evaluate", "-m", f"run={runs['in a list']},{own}", "attack=flwc", fails=True)
    assert "no job was begun" in done.stderr and "net=os:getcwd" in done.stderr
    assert not pwned.exists()


def test_report_and_status_of_hostile_records_run_nothing(hostile, tmp_path):
    _, pwned = hostile
    root = pwned.parent
    run("src.status", f"folders=[{root}]")
    run("src.report", f"folders=[{root}]", f"out={tmp_path}")
    assert not pwned.exists()


# ---- interpolation


@pytest.fixture
def leaking(trained, tmp_path):
    """A run whose record refers to the reader's environment wherever it holds a string."""
    secret = "${oc.env:PATH}"
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((folder / "results.json").read_text())
    content["config"] |= {"data_dir": secret, "init_from": secret}
    content["config"]["model"] |= {"variant": secret, secret: secret}
    content["config"]["dataset"]["data_dir"] = secret
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def assert_nothing_leaks(folder):
    for path in Path(folder).rglob("*"):
        assert os.environ["PATH"] not in str(path)
        if path.is_file():
            assert os.environ["PATH"].encode() not in path.read_bytes(), path


def test_a_string_of_a_record_stays_that_string(leaking, trained):
    content = json.loads((leaking / "results.json").read_text())
    del content["config"]["dataset"]["data_dir"]  # these digits come with a package
    (leaking / "results.json").write_text(json.dumps(content))
    run("src.evaluate", f"run={leaking}", "attack=flwc", "dataset.limit=50")
    (evaluation,) = leaking.glob("evaluations/*/results.json")
    config = json.loads(evaluation.read_text())["config"]
    assert config["data_dir"] == config["model"]["variant"] == "${oc.env:PATH}"
    assert_nothing_leaks(leaking)


def test_a_variable_leaks_neither_into_errors_nor_through_a_chosen_data_set(leaking):
    for words in (["dataset=mnist"], [], ["exclude=[fc1]"]):
        done = run("src.evaluate", f"run={leaking}", "attack=flwc", *words, fails=True)
        assert os.environ["PATH"] not in done.stderr + done.stdout
        assert_nothing_leaks(leaking)


def test_a_pattern_of_layers_that_refers_to_the_environment_is_a_pattern(leaking):
    content = json.loads((leaking / "results.json").read_text())
    del content["config"]["dataset"]["data_dir"]
    content["config"]["exclude"] = ["${oc.env:PATH}"]
    (leaking / "results.json").write_text(json.dumps(content))
    done = run("src.evaluate", f"run={leaking}", "attack=flwc", fails=True)
    assert "no layer with a weight is named '${oc.env:PATH}'" in done.stderr
    assert_nothing_leaks(leaking)


def test_a_file_that_a_record_names_as_its_data_is_not_shown(trained, tmp_path):
    (tmp_path / "notes").write_text("1,my secret\n")
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((folder / "results.json").read_text())
    for target, setting in {"TimeSeriesDataModule": "test", "ArraysDataModule": "file"}.items():
        data = {"_target_": f"worstcase.data.{target}", setting: str(tmp_path / "notes"), "num_classes": 10}
        (folder / "results.json").write_text(
            json.dumps(content | {"config": content["config"] | {"dataset": data}})
        )
        done = run("src.evaluate", f"run={folder}", "attack=flwc", fails=True)
        assert str(tmp_path / "notes") in done.stderr
        assert not [file for file in folder.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]
        assert "secret" not in done.stdout + done.stderr


# ---- downloads


def test_nothing_is_downloaded_because_a_record_says_so(trained, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setattr(MNIST, "download", lambda self: asked.append(self))
    for arguments in (
        {"weights": "DEFAULT"},
        {"pretrained": True},
        {"weights": "IMAGENET1K_V1", "progress": True},
    ):
        build({"_target_": "torchvision.models.squeezenet1_1", **arguments}, nn.Module)
        build({"_target_": "torchvision.models.get_model", "name": "squeezenet1_1", **arguments}, nn.Module)
    folder = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((folder / "results.json").read_text())
    content["config"]["dataset"] = {
        "_target_": "worstcase.data.MNISTDataModule",
        "data_dir": str(tmp_path / "nowhere"),
        "download": True,
    }
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="no MNIST below"):
        load_run(folder).datamodule.prepare_data()
    done = run("src.evaluate", f"run={folder}", "attack=flwc", fails=True)
    assert "no MNIST below" in done.stderr
    assert not asked


def test_what_pretrained_weights_change_besides_weights_is_kept():
    pretrained = {"_target_": "torchvision.models.get_model", "name": "googlenet", "weights": "DEFAULT"}
    net = build(pretrained | {"init_weights": False}, nn.Module)
    assert net.transform_input and net.aux1 is None


# ---- links and odd files


def kept(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize(
    "name",
    [
        "run.log",
        "confusion.png",
        "perturbation.safetensors",
        "tolerances.safetensors",
        "job.json",
        "instances.csv",
    ],
)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_is_written_through_what_a_foreign_folder_holds(trained, tmp_path, name, kind):
    """The name of an evaluation's folder can be known beforehand."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluations"))
    planted = folder / "evaluations" / "planted"
    planted.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    if kind == "link":
        (planted / name).symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(planted / name)
    else:
        (planted / name).mkdir()
    with pytest.raises(ValueError, match=r"choose another hydra\.run\.dir") as refused:
        check_folder(planted, {}, str(planted))
    assert str(planted / name) in str(refused.value)
    if name == "instances.csv":
        words = [f"run={folder}", "attack=monte_carlo", "attack.instances=2", "dataset.limit=20"]
        done = run("src.evaluate", *words, f"hydra.run.dir={planted}", fails=True)
        assert done.stderr.strip().splitlines() == [f"error: {refused.value}"]
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("linked", ["evaluations", "evaluations/planted"])
def test_an_evaluation_follows_no_linked_folder(trained, tmp_path, linked):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluations"))
    (elsewhere / "planted").mkdir(parents=True)
    (folder / linked).parent.mkdir(exist_ok=True)
    (folder / linked).symlink_to(elsewhere / ("" if linked == "evaluations" else "planted"))
    place = folder / "evaluations" / "planted"
    done = run(
        "src.evaluate", f"run={folder}", "attack=flwc", "dataset.limit=20", f"hydra.run.dir={place}", fails=True
    )
    assert f"{folder / linked} is a link, so nothing is written there" in done.stderr
    assert not kept(elsewhere)


def test_a_folder_that_is_named_like_a_variable_leaks_none(trained, tmp_path):
    folder = tmp_path / "${oc.env:PATH}"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("evaluations"))
    done = run("src.evaluate", "run='" + str(folder).replace("${", "\\${") + "'", "attack=flwc", fails=True)
    assert "its folder has ${ in its name; rename it" in done.stderr
    assert os.environ["PATH"] not in done.stderr and not list(tmp_path.rglob("run.log"))[1:]


def test_only_bits_of_the_model_are_an_evaluations_to_set(trained):
    done = run("src.evaluate", f"run={trained}", "attack=flwc", "+model.net=x", fails=True)
    assert "there is no setting model.net; the network is the run's, or net=" in done.stderr
