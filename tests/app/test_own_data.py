"""The user's own data, as docs/your_network.md has the commands, in processes of their own."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from commands import QUICK, REPOSITORY, refusal, run

from examples.your_own_data import RowsNetwork, write
from worstcase import load_run, results_frame
from worstcase.evaluation.settings import without_place

PAGE = (REPOSITORY / "docs" / "your_network.md").read_text()
QUICKER = [*QUICK, "method=vanilla", "certificate=null"]


@pytest.fixture(scope="session")
def digits(made_once):
    """The files that the example writes."""
    return made_once("digits", write)


def record(folder):
    return json.loads((folder / "results.json").read_text())


def documented(dataset, command="train"):
    """The words of the page's command for a form of data."""
    (line,) = re.findall(
        rf"^    python -m src\.{command} (.*dataset={dataset} .*?)(?: +#.*)?$", PAGE, re.MULTILINE
    )
    return shlex.split(line)


@pytest.mark.parametrize("dataset", ["arrays", "time_series", "imagefolder", "own"])
def test_each_form_of_data_trains_and_is_evaluated_as_documented(dataset, digits, tmp_path):
    words = [word.replace("=digits", f"={digits}") for word in documented(dataset)]
    here = ["dataset.num_workers=0"] if dataset == "imagefolder" else []  # processes take long to start
    run("src.train", *words, *here, *QUICKER, f"hydra.run.dir={tmp_path}")
    content = record(tmp_path)
    assert content["dataset"] == dataset and content["samples"] == 200
    again = [word for word in words if word.startswith("net=")]
    if dataset == "own":
        again += [word for word in words if "dataset" in word] + ["dataset.limit=200"]
    run("src.evaluate", f"run={tmp_path}", "attack=flwc", "certificate=null", *again)
    (evaluation,) = tmp_path.glob("evaluations/*")
    assert record(evaluation)["clean_accuracy"] == content["clean_accuracy"]
    loaded = load_run(
        tmp_path,
        net="examples.your_own_data:RowsNetwork" if dataset == "time_series" else None,
        of="examples.your_own_data:data" if dataset == "own" else None,
    )
    assert sum(len(labels) for _, labels in loaded.datamodule.test_dataloader()) == 200


def test_weights_in_a_file_are_evaluated_on_files_of_data(digits, tmp_path):
    torch.save({"model": {f"module.{k}": v for k, v in RowsNetwork().state_dict().items()}}, tmp_path / "w.pt")
    words = [word.replace("=digits", f"={digits}") for word in documented("time_series", "evaluate")]
    words = [word.replace("FILE", str(tmp_path / "w.pt")) for word in words]
    run("src.evaluate", *words, "attack=flwc", "dataset.limit=50", f"hydra.run.dir={tmp_path / 'out'}")
    assert record(tmp_path / "out")["samples"] == 50


# ---- what identifies it


def arrays(file, seed=0):
    draw = np.random.default_rng(seed)
    content = {f"{part}_inputs": draw.integers(0, 256, (60, 1, 28, 28), np.uint8) for part in ("train", "test")}
    np.savez(file, **content, train_labels=np.arange(60) % 10, test_labels=np.arange(60) % 10)
    return ["dataset=arrays", f"dataset.file={file}", "dataset.num_classes=10"]


def test_the_content_of_a_file_identifies_data_and_its_place_does_not(tmp_path):
    words = [*arrays(tmp_path / "a.npz"), *QUICKER, f"hydra.run.dir={tmp_path / 'run'}"]
    run("src.train", *words)
    shutil.move(tmp_path / "a.npz", tmp_path / "b [1].npz")
    words[1] = f"dataset.file='{tmp_path / 'b [1].npz'}'"
    assert "finished already" in run("src.train", *words).stderr
    config = record(tmp_path / "run")["config"]
    assert len(config["dataset"]["digest"]) == 12 and "file" not in without_place(config)["dataset"]

    evaluation = ["src.evaluate", f"run={tmp_path / 'run'}", "attack=flwc"]
    said = run(*evaluation, fails=True).stderr
    assert f"no file {tmp_path / 'a.npz'}; set dataset.file=FILE" in said
    run(*evaluation, words[1])
    arrays(tmp_path / "a.npz", seed=1)
    said = run(*evaluation, "attack.steps=1", fails=True).stderr
    assert "a.npz: not the data of this run, they have changed" in said
    assert (
        "holds the record of another configuration"
        in run("src.train", *arrays(tmp_path / "a.npz", 1), *words[3:], fails=True).stderr
    )


OWN = """
import torch
from torch.utils.data import TensorDataset

def data():
    print("executed")
    draw = torch.Generator().manual_seed(SEED)
    return tuple(TensorDataset(torch.rand(60, 1, 28, 28, generator=draw), torch.arange(60) % 10) for _ in range(2))
"""


def test_own_data_are_told_apart_by_what_they_are_and_a_record_runs_none(tmp_path, monkeypatch):
    words = ["dataset=own", "dataset.of=mine:data", "dataset.num_classes=10", *QUICKER]
    digests = []
    for seed in (0, 1):
        (tmp_path / "mine.py").write_text(OWN.replace("SEED", str(seed)))
        shown = run("worstcase", "train", *words, f"hydra.run.dir={tmp_path / str(seed)}", at=tmp_path).stdout
        assert "executed" in shown
        digests.append(record(tmp_path / str(seed))["data_digest"])
    assert len(set(digests)) == 2
    assert results_frame([tmp_path]).reference_settings.nunique() == 2, "they are not pooled"

    monkeypatch.syspath_prepend(tmp_path)
    evaluation = ["worstcase", "evaluate", f"run={tmp_path / '1'}", "attack=flwc"]
    done = run(*evaluation, fails=True, at=tmp_path)
    assert "this run uses data of its own, mine:data; if you trust it, pass dataset.of=mine:data" in done.stderr
    assert "executed" not in done.stdout + done.stderr
    with pytest.raises(ValueError, match=r"data of its own, mine:data; if you trust it, pass of=mine:data"):
        load_run(tmp_path / "1")
    run(*evaluation, *words[:3], at=tmp_path)


def test_what_the_settings_lack_is_said_before_a_folder_is_made():
    for name, needed in {"arrays": "file", "time_series": "test", "own": "of"}.items():
        assert f"dataset.{needed} is needed" in refusal("train", f"dataset={name}", "dataset.num_classes=3")
        given = f"dataset.{needed}=x"
        assert "dataset.num_classes is needed" in refusal("train", f"dataset={name}", given)


def test_a_network_that_is_handed_out_in_eval_mode_is_trained_as_any_other(tmp_path):
    network = "nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))"
    (tmp_path / "mine.py").write_text(f"from torch import nn\n\ndef net():\n    return {network}.eval()\n")
    run("worstcase", "train", "net=mine:net", *QUICKER, f"hydra.run.dir={tmp_path / 'run'}", at=tmp_path)
    weights = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert weights["crossbar.net.2.running_mean"].any()
