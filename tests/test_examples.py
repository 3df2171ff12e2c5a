import json
import re
import shlex

import pytest
import torch
from commands import QUICK, REPOSITORY, refusal, run
from torch import nn

from examples.resnet20 import resnet20, resnet20_group_norm
from examples.trice_search import kpp, quartile_points, shrunk
from examples.your_own_method import UniversalMargin
from worstcase import Crossbar
from worstcase.evaluation.record import Record


def test_resnet20_has_the_published_layout():
    """0.27 million parameters (He et al., 2016), and the names that its published weights have."""
    net = resnet20()
    assert sum(p.numel() for p in net.parameters()) == 269_722
    assert {
        "conv1.weight",
        "layer1.0.bn2.weight",
        "layer3.2.conv2.weight",
        "linear.bias",
    } <= net.state_dict().keys()
    assert len(Crossbar(net, 0.01).programmed()) == 20
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    other = resnet20_group_norm()
    assert sum(p.numel() for p in other.parameters()) == 269_722
    assert not any(isinstance(module, nn.BatchNorm2d) for module in other.modules())


def test_your_own_network_runs_and_finds_a_worse_chip():
    shown = run("examples.your_own_network").stdout.splitlines()
    clean, lowest = (
        float(part) for part in re.match(r"clean ([\d.]+)%; .* (?:and|at most) ([\d.]+)%", shown[0]).groups()
    )
    assert clean > 80 and lowest < clean - 10
    assert shown[-2].startswith("true classes:") and shown[-1].startswith("its answers:")


def test_the_notebook_first_steps_runs(short_ensemble, tmp_path, monkeypatch):
    """Its cells run, and the file has their outputs."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((REPOSITORY / "examples" / "first_steps.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    sources[0] = re.sub(r"= .*", "= 2, 1, 5", sources[0])  # epochs, hardening_epochs, chips
    names: dict = {}
    for source in sources:
        exec(source.replace("MNIST5k(", "MNIST5k(limit=300, "), names)
    assert names["result"].attacked_accuracy < names["result"].clean_accuracy
    assert len(names["frame"]) == 2
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} >= {"stream", "display_data"}
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])


def test_trice_search_halves_its_interval_around_the_best_point():
    assert quartile_points(0.0, 0.4) == pytest.approx([0.1, 0.2, 0.3])
    assert shrunk(0.0, 0.4, 0.1) == pytest.approx((0.0, 0.2))
    assert shrunk(0.0, 0.4, 0.2) == pytest.approx((0.1, 0.3))
    assert shrunk(0.0, 0.4, 0.3) == pytest.approx((0.2, 0.4))


def test_kpp_is_a_quantile_of_the_accuracies_of_random_chips():
    """Weights 1 and 0, each with noise of deviation 1: a chip is wrong if the second becomes the larger."""
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
    batch = (torch.ones(1, 1), torch.tensor([0]))
    options = {"variation": 1.0, "instances": 200}
    wrong = sum(kpp(Crossbar(layer, 0.1), [batch], k=k / 100, **options) < 0.5 for k in range(100)) / 100
    assert wrong == pytest.approx(0.24, abs=0.08)  # P(N(1, sqrt 2) < 0)


def test_a_method_of_your_own_is_trained_under_its_own_name_by_a_command_that_repeats(tmp_path):
    """The record's command does the same job again, and its sweep's command the same sweep."""
    own = ["--config-dir", "examples/conf"]
    words = ["method=universal_margin,vanilla", *QUICK]
    run("src.train", *own, "-m", *words, f"hydra.sweep.dir={tmp_path}")
    found = [Record.load(path.parent) for path in tmp_path.rglob("results.json")]
    assert {record.method for record in found} == {"universal_margin", "vanilla"}
    (record,) = (record for record in found if record.method == "universal_margin")
    repeated = shlex.split(record.command)
    assert repeated == ["python", "-m", "src.train", *own, "method=universal_margin", *QUICK]
    run("src.train", *repeated[3:], f"hydra.run.dir={tmp_path / 'again'}")
    again = Record.load(tmp_path / "again")
    assert again.config == record.config
    assert (again.clean_accuracy, again.attacked_accuracy) == (record.clean_accuracy, record.attacked_accuracy)
    sweep = ["python", "-m", "src.train", *own, "-m", *words, f"hydra.sweep.dir={tmp_path}"]
    assert shlex.split(record.sweep) == sweep


def test_a_class_of_your_own_under_the_name_of_a_method_of_ours_is_refused():
    said = refusal("train", "method=universal_at", "method._target_=examples.your_own_method.UniversalMargin")
    assert said.startswith("method=universal_at with method._target_=examples.your_own_method.UniversalMargin:")
    assert "--config-dir FOLDER" in said


def test_a_file_of_your_own_in_whose_place_ours_would_be_taken_is_refused(tmp_path):
    (tmp_path / "method").mkdir()
    (own := tmp_path / "method" / "atrice.yaml").write_text("_target_: examples.your_own_method.UniversalMargin\n")
    said = refusal("train", f"hydra.searchpath=[file://{tmp_path}]", "method=atrice")
    assert said == f"{own}: worstcase has such a file, which it would take instead; rename yours"
    own.rename(tmp_path / "method" / "atrice_of_mine.yaml")
    assert refusal("train", f"hydra.searchpath=[file://{tmp_path}]", "method=atrice_of_mine") is None


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("method", "method._target_=torch.nn.Identity: must be a subclass of worstcase.methods.Method"),
        ("attack@val_attack", "Identity: is no attack; give an object of worstcase.attacks.Attack"),
    ],
)
def test_a_class_of_your_own_that_is_of_another_kind_is_named(tmp_path, group, said):
    (tmp_path / group.split("@")[0]).mkdir()
    (tmp_path / group.split("@")[0] / "mine.yaml").write_text("_target_: torch.nn.Identity")
    words = ["--config-dir", tmp_path, f"{group}=mine", *QUICK, f"hydra.run.dir={tmp_path / 'run'}"]
    assert f"error: {said}" in run("src.train", *words, fails=True).stderr


def test_the_hinge_loss_of_the_example_by_hand():
    """Logits (x, 0) as programmed and (x / 2, 0) on the chip, for one sample x = 1 of class 0."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [0.0]]))
    chip = {"weight": torch.tensor([[-0.5], [0.0]])}
    method = UniversalMargin(Crossbar(net, 0.5), num_classes=2)
    hinge = method.loss_at(chip, torch.ones(1, 1), torch.tensor([0]), clean=0.2)
    assert hinge.item() == pytest.approx(0.8 * 0.5 / 2)  # multi_margin_loss is the mean over the classes
