"""The zoo: what is published can be loaded and checked."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import QUICK, REPOSITORY, run, shorten_ensembles
from records import CONFIG, attack_record, record
from safetensors.torch import load_file

import worstcase
from worstcase import load_run, save_tolerances, zoo
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.record import Record

NAMES = zoo.names()


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    return zoo.publish(trained, "lenet", tmp_path_factory.mktemp("zoo"))


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


def test_a_row_of_the_leaderboard_is_the_record(published):
    record = Record.load(published)
    lowest = record.attacked_accuracy
    page = zoo.leaderboard([published.parent], seen_from=published.parent.parent)
    assert f"| `vanilla` | 3 | 1 | {100 * record.clean_accuracy:.2f} |" in page
    assert f"| {100 * lowest:.2f} |" in page
    assert f"[{published.name}]({published.parent.name}/{published.name})" in page
    assert f"{record.parameters_perturbed:,} weights" in page


def test_what_another_attack_found_and_another_evaluation_proved_counts(tmp_path):
    method = {"trains_without_thg": True, "monitor": "val/accuracy"}
    for seed in (0, 1):
        config = CONFIG | {"seed": seed, "method": method}
        runs = {
            "": {"attacks": [attack_record(attack="ensemble", accuracy=0.5)], "kind": "train"},
            "pgd": {"attacks": [attack_record(attack="pgd", accuracy=0.25)]},
            "chips": {"attacks": [attack_record(attack="monte_carlo", accuracy=0.2)]},
            "proof": {"attacks": [attack_record(attack="flwc", accuracy=0.6)], "certified_accuracy": 0.125},
        }
        for name, said in runs.items():
            place = tmp_path / f"run{seed}" / name
            place.mkdir(parents=True)
            evaluation = {"kind": "evaluate", "source_run": "..", "git_commit": None}
            commit = {"git_commit": f"{seed}" * 9}
            record(config=config, seed=seed, **(evaluation if name else commit) | said).save(place)
    (row,) = [line for line in zoo.leaderboard([tmp_path]).splitlines() if line.startswith("| `vanilla`")]
    assert "| 12.50 ± 0.00 | 25.00 ± 0.00 | 0000000, 1111111 |" in row


def test_a_run_under_two_names_is_one_seed(published, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(published, tmp_path / name)
    page = zoo.leaderboard([tmp_path])
    assert page.count("| `vanilla` | 3 | 1 |") == 1 and "±" not in page


def test_runs_whose_boxes_differ_are_in_tables_of_their_own(published, tmp_path):
    own = Record.load(published)
    quantised = {
        "activation_bits": 4,
        "config": {**own.config, "model": {**own.config["model"], "activation_bits": 4}},
    }
    boxes = {
        "": {},
        'thg=[["fc*", 0.001], ["*", 0.03]]': {"config": {**own.config, "thg": {"fc*": 0.001, "*": 0.03}}},
        "cut_off=true": {"config": {**own.config, "mapping": {**own.config["mapping"], "cut_off": True}}},
        "full_scale=unit": {"full_scale": "unit", "config": {**own.config, "full_scale": "unit"}},
        "activation_bits=4": quantised,
    }
    for seed, changes in enumerate(boxes.values()):
        folder = shutil.copytree(published, tmp_path / str(seed))
        dataclasses.replace(own, **{"seed": seed, **changes}).save(folder)
    page = zoo.leaderboard([tmp_path])
    assert page.count("| `vanilla` | 3 | 1 |") == len(boxes) and "±" not in page
    assert all(name in page for name in boxes)


@pytest.fixture
def evaluated(published, tmp_path):
    """Writes an evaluation of a published network, which found 0.1 % and proved nothing, and returns its page."""
    folder = shutil.copytree(published, tmp_path / "zoo" / "lenet")
    own = Record.load(folder)
    lower = [dataclasses.replace(found, accuracy=0.001) for found in own.attacks]
    unproven = {"certified_accuracy": None, "certified": [], "certified_up_to": [], "diagnosis": None}

    def page(**changes):
        values = {"kind": "evaluate", "source_run": "../..", "attacks": lower, **unproven, **changes}
        place = folder / "evaluations" / "one"
        place.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(own, **values).save(place)
        return zoo.leaderboard([tmp_path / "zoo"])

    before = zoo.leaderboard([tmp_path / "zoo"])
    return own, before, page


def test_an_evaluation_of_other_data_or_weights_is_in_no_row(evaluated):
    own, before, page = evaluated
    assert page(samples=50, decisions=50) == before
    assert page(config={**own.config, "exclude": ["conv1"]}) == before
    assert page(weight_bits=4) == before
    assert page(config={**own.config, "checkpoint": "other.pt"}) == before


def test_an_evaluation_of_the_same_data_is_in_its_row(evaluated):
    own, before, page = evaluated
    named = {key: one for key, one in own.config["dataset"].items() if one is not None}
    for changes in ({}, {"config": {**own.config, "dataset": {**named, "batch_size": 500, "val_fraction": 0.2}}}):
        assert "| 0.10 |" in page(**changes) and "| 0.10 |" not in before


def test_each_th_g_of_a_network_that_is_trained_without_it_has_a_table(evaluated):
    own, _, page = evaluated
    assert own.config["method"]["trains_without_thg"]
    lower = [dataclasses.replace(found, accuracy=0.001, thg=0.05) for found in own.attacks]
    both = page(attacks=lower, thg=0.05)
    assert "th_g 0.03" in both and "th_g 0.05" in both and both.count("| 0.10 |") == 1


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


@pytest.mark.parametrize("place", sorted(zoo.ZOO.glob("*/evaluations/*")), ids=lambda place: place.parts[-3])
def test_where_an_evaluation_made_the_numbers_its_command_stands_too(place):
    run = place.parts[-3]
    command = re.sub(r"run=\S+", f"run=zoo/{run}", Record.load(place).command)
    page = zoo.leaderboard([zoo.ZOO / run]).replace(str(zoo.ZOO), "zoo")
    assert f"    {Record.load(zoo.ZOO / run).command}\n" in page
    assert f"    {command}\n" in page


def test_the_page_is_what_the_command_writes(tmp_path):
    page = tmp_path / "docs" / "leaderboard.md"
    page.parent.mkdir()
    (tmp_path / "zoo").symlink_to(REPOSITORY / "zoo")
    run("worstcase.zoo", at=tmp_path)
    assert page.read_text() == Path(REPOSITORY, "docs", "leaderboard.md").read_text()


def test_a_page_elsewhere_links_to_the_zoo_and_one_of_no_networks_is_not_written(published, tmp_path):
    page = tmp_path / "page.md"
    zoo.write_page(page, published.parent)
    where = os.path.relpath(published.parent, tmp_path)
    assert f"[zoo/]({where})" in page.read_text() and f"({where}/{published.name})" in page.read_text()
    before = page.read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no networks in"):
        zoo.write_page(page, tmp_path / "empty")
    assert page.read_bytes() == before


@pytest.mark.parametrize("name", ["", ".", "..", "../elsewhere", "a b", "a|b", "/tmp/a"])
def test_a_name_that_is_no_folder_of_the_zoo_is_refused(name, trained, tmp_path):
    with pytest.raises(ValueError, match="is no name for a network"):
        zoo.publish(trained, name, tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_is_one_line(tmp_path):
    done = run("worstcase.zoo", "nowhere", "name", at=tmp_path, fails=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
