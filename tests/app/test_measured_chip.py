"""`chip=FILE` of evaluate, and the file of the worst chip, in processes of their own."""

import json

import numpy as np
import pytest
import torch
from commands import refusal, run
from safetensors.torch import load_file, save_file

from worstcase import load_run
from worstcase.attacks.passes import accuracy
from worstcase.models import LeNet


def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture
def loaded(trained):
    return load_run(trained)


def test_a_chip_in_a_file_is_scored_and_the_record_keeps_it(mine, loaded, tmp_path):
    """Its path is relative to where the command is given, and may hold spaces, brackets and =."""
    chip = {name: d.numpy() for name, d in loaded.crossbar.box.sample("vertex").items()}
    chip["fc1.weight"][0, :7] *= 3
    place = tmp_path / "lab [1], a=b"
    place.mkdir()
    np.savez(place / "chip.npz", **chip)
    words = ["worstcase", "evaluate", "run=mine", "attack=flwc", "dataset.limit=100", "certificate=null"]
    done = run(*words, "chip='lab [1], a=b/chip.npz'", at=tmp_path)
    shown = " ".join(done.stdout.split())
    assert "chip that was read back" in shown and "7 weights outside the box (fc1.weight 7)" in shown
    (evaluation,) = mine.glob("evaluations/flwc-*")
    found = record(evaluation)["chip"]
    assert (evaluation / found["file"]).resolve() == (place / "chip.npz").resolve()
    assert 0 <= found["accuracy"] <= 1 and found["failed"] == 7 and found["failed_by_array"]["fc1.weight"] == 7
    assert record(evaluation)["config"]["chip_holds"] == "deviations"

    (place / "chip.npz").rename(tmp_path / "moved.npz")
    assert "finished already" in run(*words, "chip=moved.npz", at=tmp_path).stderr
    done = run("worstcase", "report", "folders=[mine]", "out=report", at=tmp_path)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "read back" in page and f"{found['accuracy']:.2%}".replace("%", " %") in page
    assert done.returncode == 0


def test_the_file_of_the_worst_chip_is_that_chip_in_plain_pytorch_and_can_be_given_as_a_chip(mine, tmp_path):
    words = ["src.evaluate", f"run={mine}", "attack=flwc", "dataset.limit=100", "certificate=null"]
    run(*words)
    (evaluation,) = mine.glob("evaluations/flwc-*")
    file = evaluation / "worst_chip.safetensors"
    net = LeNet()
    net.load_state_dict(load_file(file))
    datamodule = load_run(mine).datamodule
    datamodule.limit = 100
    with torch.no_grad():
        batches = list(datamodule.test_dataloader())
        right = sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in batches)
    assert right / 100 == record(evaluation)["attacked_accuracy"] < record(evaluation)["clean_accuracy"]

    run(*words, f"chip={file}", "chip_holds=weights", f"hydra.run.dir={tmp_path / 'back'}")
    back = record(tmp_path / "back")["chip"]
    assert (back["accuracy"], back["failed"]) == (right / 100, 0)
    said = run(*words, f"chip={file}", f"hydra.run.dir={tmp_path / 'wrong'}", fails=True).stderr
    assert "the chip does not fit the network: no array is named conv1.bias" in said


def test_which_weights_to_program_again_is_left_and_shown(mine, loaded, tmp_path):
    loaded.datamodule.limit = 100
    data = list(loaded.datamodule.test_dataloader())
    clean = accuracy(loaded.crossbar, data)
    worst = load_file(mine / "perturbation.safetensors")
    save_file(worst, tmp_path / "chip.safetensors")
    words = ["src.evaluate", f"run={mine}", "attack=flwc", "dataset.limit=100", "certificate=null"]
    words += [
        f"chip={tmp_path / 'chip.safetensors'}",
        f"reprogram={clean - 0.1}",
        f"hydra.run.dir={tmp_path / 'e'}",
    ]
    shown = run(*words, f"reprogram={clean - 0.1}").stdout
    again = record(tmp_path / "e")["chip"]["again"]
    assert again["accuracy"] >= clean - 0.1 and f"the first {again['weights']:,} weights" in shown
    rank = load_file(tmp_path / "e" / again["file"])
    assert 0 < again["weights"] < sum(r.numel() for r in rank.values())
    sound = {name: torch.where(rank[name] < again["weights"], 0, d) for name, d in worst.items()}
    assert accuracy(loaded.crossbar, data, sound) > accuracy(loaded.crossbar, data, worst)


def no_validation_images() -> None:
    from worstcase.data import InMemoryDataModule

    def val_dataloader(self):
        raise ValueError("its val_dataloader gives several loaders; give one")

    InMemoryDataModule.val_dataloader = val_dataloader


def test_no_attack_is_thrown_away_because_no_weight_can_be_programmed_again(mine, tmp_path):
    words = [f"run={mine}", "attack=monte_carlo", "attack.instances=1", "dataset.limit=20", "certificate=null"]
    words += [f"chip={mine / 'perturbation.safetensors'}", "reprogram=0.9", f"hydra.run.dir={tmp_path}"]
    done = run("src.evaluate", *words, before=(no_validation_images,), fails=True)
    assert done.stderr.splitlines()[-1] == "error: its val_dataloader gives several loaders; give one"
    assert not (tmp_path / "instances.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reprogram=0.9"], "reprogram=0.9: needs chip=FILE"),
        ([f"chip={__file__}", "reprogram=95"], "reprogram=95: must be above 0 and at most 1, an accuracy"),
        (["chip=none.npz"], "no chip at none.npz; say chip=FILE, .safetensors or .npz"),
        (["chip_holds=weights"], "chip_holds=weights: needs chip=FILE"),
        (["chip_holds=volts"], "chip_holds=volts: must be deviations or weights"),
    ],
)
def test_a_chip_that_is_not_there_is_one_line_before_a_folder_is_made(trained, tmp_path, words, message):
    folder = tmp_path / "out"
    words = [f"run={trained}", "attack=flwc", *words, f"hydra.run.dir={folder}"]
    assert message in refusal("evaluate", *words)
    if message.startswith("no chip"):
        done = run("src.evaluate", *words, fails=True)
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1 and not folder.exists()
