import json
import re

import pytest
import torch
from commands import REPOSITORY, run
from torch import nn

from examples.resnet20 import resnet20
from examples.trice_search import kpp, quartile_points, shrunk
from worstcase import Crossbar


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
