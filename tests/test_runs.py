import json
import math
import shutil

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

import worstcase
from worstcase import Crossbar, load_run
from worstcase.data import OwnDataModule
from worstcase.models import LeNet
from worstcase.runs import build, check_fit


def test_a_loaded_run_is_ready_to_attack(trained):
    run = load_run(trained)
    assert not any(module.training for module in run.crossbar.modules())
    found = worstcase.attacks.LWC()(run.crossbar, run.datamodule.test_dataloader(), progress=False)
    assert found.clean_accuracy == pytest.approx(run.record.clean_accuracy, abs=0.002)
    run.crossbar.thg = 0.01
    assert run.crossbar.bound()["fc3.weight"] > 0


@pytest.mark.parametrize("attack", [0, 1])
def test_a_saved_perturbation_is_feasible_and_gives_the_recorded_accuracy(trained, attack):
    """Both are computed again from the files alone."""
    run = load_run(trained)
    found = run.record.attacks[attack]
    perturbation = load_file(trained / found.perturbation)
    weights = run.crossbar.programmed()
    assert perturbation.keys() == weights.keys()
    largest = max(
        (d.double().abs().max() / weights[name].double().abs().max()).item() for name, d in perturbation.items()
    )
    assert 0 < largest == found.max_relative_perturbation <= run.record.thg
    right = total = 0
    with torch.no_grad():
        for images, labels in run.datamodule.test_dataloader():
            right += (run.crossbar(images, perturbation).argmax(1) == labels).sum().item()
            total += len(labels)
    assert right / total == pytest.approx(found.accuracy, abs=0.002)


def test_checkpoints_load_as_plain_tensors(trained):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    assert any(key.startswith("crossbar.net.conv1") for key in content["state_dict"])


def test_a_run_with_quantised_outputs_needs_their_ranges(trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((copy / "results.json").read_text())
    content["config"]["model"]["activation_bits"] = 4
    (copy / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no ranges of this network's outputs"):
        load_run(copy)


class Answers(nn.Module):
    """Takes inputs by name, and answers for each pixel, token, label or sample."""

    def __init__(self, *shape):
        super().__init__()
        self.layer, self.shape = nn.Linear(4, math.prod(shape)), shape

    def forward(self, x):
        return self.layer(x).unflatten(1, self.shape)


class Batch:
    def __init__(self, classes, labels):
        self.num_classes, self.labels = classes, labels

    def test_dataloader(self):
        return [{"x": torch.zeros(len(self.labels), 4), "labels": self.labels}]


@pytest.mark.parametrize(
    ("shape", "classes", "labels"),
    [
        ((3,), 3, torch.tensor([0, 1, 2])),
        ((3, 2, 2), 3, torch.zeros(3, 2, 2).long()),
        ((5, 3), 3, torch.zeros(3, 5).long()),
        ((1,), 2, torch.tensor([0, 1, 1])),
        ((4,), 2, torch.ones(3, 4)),
    ],
)
def test_every_task_is_checked_against_the_number_of_classes(shape, classes, labels):
    crossbar = Crossbar(Answers(*shape), 0.1)
    check_fit(crossbar, Batch(classes, labels))
    with pytest.raises(ValueError, match=f"decides among {classes} classes, but the data set has 7 classes"):
        check_fit(crossbar, Batch(7, labels))


def test_inputs_and_labels_that_a_network_does_not_take_are_refused():
    with pytest.raises(ValueError, match="the network does not take inputs of 4: "):
        check_fit(Crossbar(nn.Linear(4, 3), 0.1), Batch(3, torch.tensor([0, 1])))  # it takes no x
    with pytest.raises(ValueError, match="each label must be 0 to 2, but one is 3"):
        check_fit(Crossbar(Answers(3), 0.1), Batch(3, torch.tensor([3, 0])))
    with pytest.raises(ValueError, match="3 classes; of one-hot labels, give the number of each class"):
        check_fit(Crossbar(Answers(3), 0.1), Batch(3, torch.eye(3)))
    with pytest.raises(ValueError, match="the first test batch has no samples"):
        check_fit(Crossbar(Answers(3), 0.1), Batch(3, torch.zeros(0)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 1], [2, 3]], "test batch 1: the network gives 3 classes, .*but one is 3"),
        ([[0, 1], []], "test batch 1 has no samples"),
    ],
)
def test_each_batch_of_the_users_own_code_is_looked_at(monkeypatch, labels, message):
    class Mine(L.LightningDataModule):
        def test_dataloader(self):
            return DataLoader([(torch.zeros(len(one), 4), torch.tensor(one)) for one in labels], batch_size=None)

    monkeypatch.setattr("worstcase.data.own.resolve_name", lambda name: Mine)
    with pytest.raises(ValueError, match=message):
        check_fit(Crossbar(nn.Linear(4, 3), 0.1), OwnDataModule(of="mine:Mine", num_classes=3))


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "worstcase.runs.torch.load"},
        {"_target_": "worstcase.evaluation.record.write_json"},
        {"_target_": "worstcase.data.MNIST5k"},
        {"_target_": "worstcase.models.LeNet", "num_classes": {"_target_": "os.getpid"}},
        {"_target_": "torchvision.models.torch.load"},
        {"_target_": "worstcase.none.Such"},
        {},
    ],
)
def test_a_foreign_configuration_executes_no_code(config):
    with pytest.raises(ValueError, match="so it is not built from a record"):
        build(config, nn.Module)


def test_networks_of_this_project_and_of_torchvision_are_built():
    assert isinstance(build({"_target_": "worstcase.models.LeNet", "num_classes": 3}, nn.Module), LeNet)
    squeezenet = build({"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3}, nn.Module)
    assert squeezenet(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_a_folder_without_a_finished_training_run_is_refused(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        load_run(tmp_path)
    copy = shutil.copytree(trained, tmp_path / "copy")
    content = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps({**content, "kind": "evaluate"}))
    with pytest.raises(
        ValueError, match=r"an evaluation, not a training run; results_frame\(\['.*copy'\]\) reads"
    ):
        load_run(copy)
