"""The zoo: what is published can be loaded and checked."""

import json
import shutil
import sys

import pytest
import torch
from commands import QUICK, run, shorten_ensembles
from safetensors.torch import load_file

import worstcase
from worstcase import load_run, save_tolerances, zoo
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.record import Record

NAMES = zoo.names()


def test_a_published_run_is_the_run(trained, published):
    one, other = load_run(trained), load_run(published)
    state = one.crossbar.state_dict()
    assert state.keys() == other.crossbar.state_dict().keys()
    assert all(torch.equal(tensor, other.crossbar.state_dict()[name]) for name, tensor in state.items())
    assert one.record.attacks == other.record.attacks and one.record.git_commit == other.record.git_commit


def test_it_names_no_folder_of_the_machine(trained, published, mine, tmp_path):
    record = json.loads((mine / "results.json").read_text())
    record["sweep"] = f"python -m src.train -m seed=0,1 hydra.sweep.dir={mine.parent}"
    record["config"]["init_from"] = "/home/me/start.pt"
    record["command"] += " init_from=/home/me/start.pt data_dir=/home/me/data"
    (mine / "results.json").write_text(json.dumps(record))
    swept = zoo.publish(mine, "swept", tmp_path)
    assert Record.load(swept).sweep == "python -m src.train -m seed=0,1"
    assert Record.load(swept).config["init_from"] == "start.pt"
    assert Record.load(swept).command.endswith("init_from=start.pt data_dir=data")
    assert "/home/me" not in (swept / "results.json").read_text()
    assert Record.load(published).config["data_dir"] == "data"
    assert str(trained.parent) not in (published / "results.json").read_text()


def test_quantised_outputs_keep_their_ranges(trained, tmp_path):
    run = load_run(trained)
    crossbar = worstcase.Crossbar(run.crossbar.net, thg=0.03, weight_bits=4, activation_bits=4)
    crossbar.calibrate(run.datamodule.val_dataloader())
    file = tmp_path / "crossbar.pt"
    torch.save(crossbar.state_dict(), file)
    again = worstcase.Crossbar(worstcase.models.LeNet(), thg=0.03, weight_bits=4, activation_bits=4)
    worstcase.checkpoints.load_weights(again, file)
    assert torch.equal(again.outputs.ranges, crossbar.outputs.ranges) and not again.outputs.ranges.isnan().any()


def test_a_network_is_not_replaced(trained, published):
    with pytest.raises(FileExistsError, match="choose another name"):
        zoo.publish(trained, published.name, published.parent)


def test_a_network_is_published_whole_or_not_at_all(mine, tmp_path):
    (mine / "perturbation.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"perturbation\.safetensors"):
        zoo.publish(mine, "lenet", tmp_path / "zoo")
    assert list((tmp_path / "zoo").iterdir()) == []


def test_a_network_that_the_ensemble_did_not_attack_is_refused(mine, tmp_path):
    record = json.loads((mine / "results.json").read_text())
    record["attacks"] = [found for found in record["attacks"] if found["attack"] != "ensemble"]
    (mine / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="was not attacked by the ensemble"):
        zoo.publish(mine, "lenet", tmp_path)
    assert list(tmp_path.glob("lenet")) == []


def test_files_outside_the_run_are_not_published(mine, tmp_path):
    outside = tmp_path / "outside.safetensors"
    shutil.copy(mine / "perturbation.safetensors", outside)
    (mine / "perturbation.safetensors").unlink()
    (mine / "perturbation.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="symbolic link"):
        zoo.publish(mine, "lenet", tmp_path / "zoo")
    (mine / "perturbation.safetensors").unlink()
    (mine / "perturbation.safetensors").write_text("import os")
    with pytest.raises(ValueError, match="cannot read the chip"):
        zoo.publish(mine, "lenet", tmp_path / "zoo")
    record = json.loads((mine / "results.json").read_text())
    for found in record["attacks"]:
        found["perturbation"] = "results.json"
    (mine / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="is not the file of a chip"):
        zoo.publish(mine, "lenet", tmp_path / "zoo")
    assert list((tmp_path / "zoo").iterdir()) == []


OWN_CODE = {
    "net": "my.module:network",
    "dataset": {"_target_": "worstcase.data.OwnDataModule", "of": "my.module:data"},
}


@pytest.mark.parametrize("setting", OWN_CODE)
def test_networks_and_data_of_the_users_code_are_refused_before_anything_else(setting, mine, tmp_path):
    record = json.loads((mine / "results.json").read_text())
    record["config"][setting] = OWN_CODE[setting]
    (mine / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="of your own code cannot be published; the zoo holds"):
        zoo.publish(mine, "lenet", tmp_path)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=NAMES[0]):
        worstcase.load("lenet-nowhere")


@pytest.mark.parametrize("name", [name for name in NAMES if "mnist5k" in name])
def test_a_network_of_the_zoo_is_as_good_as_its_record_says(name):
    run = worstcase.load(name)
    test = list(run.datamodule.test_dataloader())
    assert accuracy(run.crossbar, test) == pytest.approx(run.record.clean_accuracy, abs=1e-9)
    for found in run.record.attacks:
        chip = load_file(zoo.ZOO / name / found.perturbation)
        assert run.crossbar.box.contains(chip)
        assert accuracy(run.crossbar, test, chip) == pytest.approx(found.accuracy, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_records_of_the_zoo_belong_to_their_weights(name):
    run = worstcase.load(name)
    weights = run.crossbar.programmed()
    assert sum(weight.numel() for weight in weights.values()) == run.record.parameters_perturbed
    for found in run.record.attacks:
        chip = load_file(zoo.ZOO / name / found.perturbation)
        assert run.crossbar.box.contains(chip) and chip.keys() == weights.keys()


def test_th_g_of_single_weights_comes_along(tmp_path):
    thg = {"conv1.weight": torch.linspace(0.01, 0.03, 54).view(6, 1, 3, 3), "fc*": 0.02, "*": 0.03}
    save_tolerances(tmp_path / "mine.safetensors", thg)
    words = [*QUICK, "attack@test_attack=ensemble", "method=vanilla", f"thg={tmp_path / 'mine.safetensors'}"]
    run("src.train", *words, f"hydra.run.dir={tmp_path / 'run'}", before=(shorten_ensembles,))
    crossbar = load_run(tmp_path / "run").crossbar
    folder = zoo.publish(tmp_path / "run", "lenet", tmp_path / "zoo")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "mine.safetensors").unlink()
    published = load_run(folder)
    assert published.record.config["thg"]["file"] == "tolerances.safetensors"
    assert list(published.crossbar.tolerance) == list(thg)
    for name, high in crossbar.box.high.items():
        assert torch.equal(published.crossbar.box.high[name], high)


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a b", "a|b", "/tmp/a"])
def test_a_name_that_is_no_folder_of_the_zoo_is_refused(name, trained, tmp_path):
    with pytest.raises(ValueError, match="is no name for a network"):
        zoo.publish(trained, name, tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    done = run("worstcase.zoo", "nowhere", "name", at=tmp_path, fails=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_nothing_is_published_without_a_page_and_a_row_that_is_missing_is_told(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["zoo", str(trained), "mine"])
    with pytest.raises(SystemExit, match="error: no folder docs for the page; run it in a clone"):
        zoo.main()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("worstcase.leaderboard.leaderboard", lambda folders, seen_from: "")
    (tmp_path / "docs").mkdir()
    with pytest.raises(SystemExit, match="error: it has no row of mine: "):
        zoo.main()
