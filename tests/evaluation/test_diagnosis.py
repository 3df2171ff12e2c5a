import json

import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.attacks import Ensemble
from worstcase.evaluation import sensitivity
from worstcase.evaluation.diagnosis import diagnose
from worstcase.evaluation.sensitivity import damage_by_layer, importance, selective_write_verify

FEW = {"budget": 6.0, "progress": False}


@pytest.fixture
def identity():
    """Logits are the two inputs; the bound of each weight is 0.5."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    return Crossbar(net, thg=0.5)


@pytest.fixture
def two_layers():
    """Two arrays, 3-2-3, and batches for which all answers of the network are right."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False))
    crossbar = Crossbar(net, thg=0.3)
    images = torch.randn(60, 3)
    labels = net(images).argmax(1)
    return crossbar, list(zip(images.split(20), labels.split(20), strict=True))


@pytest.fixture
def found(two_layers):
    crossbar, batches = two_layers
    return Ensemble(budget=30)(crossbar, batches, progress=False)


def test_answers_and_confidence_match_values_worked_out_by_hand(identity):
    images = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 1])
    worst = {"weight": torch.tensor([[-0.5, 0.0], [0.5, -0.25]])}
    with torch.no_grad():
        identity.net.weight.copy_(torch.tensor([[1.0, 0.0], [0.25, 1.0]]))
    # W + d = [[0.5, 0], [0.75, 0.75]]: logits (1, 1.5), (0.5, 0.75), (0, 2.25): the first two are wrong.
    told = diagnose(identity, [(images[:2], labels[:2]), (images[2:], labels[2:])], worst)
    assert (told["clean_accuracy"], told["accuracy"], told["samples"]) == (1.0, pytest.approx(1 / 3), 3)
    assert told["confusion"]["matrix"] == [[0, 2], [0, 1]]
    assert told["confusion"]["by_class"] == [
        {"class": 0, "samples": 2, "clean_right": 2, "right": 0, "answers": 0},
        {"class": 1, "samples": 1, "clean_right": 1, "right": 1, "answers": 3},
    ]
    sigmoid = [torch.tensor(x).sigmoid().item() for x in (0.5, 0.25, 2.25)]
    wrong, right = told["confidence"]["worst"]["wrong"], told["confidence"]["worst"]["right"]
    assert wrong["mean"] == pytest.approx((sigmoid[0] + sigmoid[1]) / 2)  # 0.622 and 0.562
    assert [i for i, count in enumerate(wrong["counts"]) if count] == [11, 12]
    assert right["mean"] == pytest.approx(sigmoid[2]) and right["counts"][18] == 1  # 0.905
    assert told["confidence"]["clean"]["wrong"] == {"answers": 0, "mean": None, "counts": [0] * 20}
    assert told["perturbation"]["counts"] == [1, *[0] * 9, 1, *[0] * 8, 2]  # of 0, 1/2, 1, 1 bounds
    assert told["layers"] == [{"array": "weight", "weights": 4, "mean": 0.625, "unmoved": 0.25, "at_bound": 0.5}]


def test_importance_is_the_first_order_effect_at_the_bound(identity):
    (weight,) = importance(identity, [(torch.tensor([[2.0, -1.0], [0.0, 1.0]]), torch.tensor([0, 1]))]).values()
    # Margins o0 - o1 of (2, -1) and o1 - o0 of (0, 1): d/dW of the mean is +-(1, -1), times the bound 0.5.
    assert torch.equal(weight, torch.tensor([[0.5, 0.5], [0.5, 0.5]]))


def test_counts_and_shares_are_consistent_and_survive_json(two_layers, found):
    crossbar, batches = two_layers
    state = {name: t.clone() for name, t in crossbar.state_dict().items()}
    crossbar.train()
    told = diagnose(crossbar, batches, found.perturbation, full=True, **FEW)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told == diagnose(crossbar, batches, found.perturbation, full=True, **FEW)
    assert told["accuracy"] == found.accuracy and told["clean_accuracy"] == 1
    assert sum(map(sum, told["confusion"]["matrix"])) == told["samples"] == 60
    for chip in told["confidence"].values():
        assert sum(sum(answers["counts"]) for answers in chip.values()) == 60
    assert sum(told["perturbation"]["counts"]) == told["perturbation"]["weights"] == 12
    for key in ("unmoved", "at_bound", "mean"):
        by_layer = sum(layer["weights"] * layer[key] for layer in told["layers"])
        assert by_layer / 12 == pytest.approx(told["perturbation"][key])
    assert all(torch.equal(t, state[name]) for name, t in crossbar.state_dict().items())
    assert crossbar.training and crossbar.net[0].training


def test_one_layer_at_a_time_leaves_the_others_exact(two_layers, found, monkeypatch):
    crossbar, batches = two_layers
    attacked = []
    attack = sensitivity._attack
    monkeypatch.setattr(sensitivity, "_attack", lambda *a: attacked.append(attack(*a)) or attacked[-1])
    damage = damage_by_layer(crossbar, batches, found.perturbation, budget=30, progress=False)
    for name, alone in zip(damage, attacked, strict=True):
        assert not any(bool(d.any()) for other, d in alone.perturbation.items() if other != name)
        assert damage[name]["lowest_alone"] == alone.accuracy <= damage[name]["accuracy_of_its_part"] <= 1
    part = {name: d * (name == "0.weight") for name, d in found.perturbation.items()}
    right = sum(int((crossbar(x, part).argmax(1) == y).sum()) for x, y in batches)
    assert damage["0.weight"]["accuracy_of_its_part"] == right / 60


def test_more_movable_weights_never_give_a_higher_accuracy(two_layers, found):
    crossbar, batches = two_layers
    points = selective_write_verify(crossbar, batches, found.perturbation, shares=(0.01, 0.25, 0.5, 1.0), **FEW)
    assert [point["weights"] for point in points] == [1, 3, 6, 12]
    only = [point["only_these_move"] for point in points]
    others = [point["all_others_move"] for point in points]
    assert only == sorted(only, reverse=True) and others == sorted(others)
    everything = Ensemble(budget=6)(crossbar, batches, start=found.perturbation, progress=False)
    assert only[-1] <= everything.accuracy and others[-1] == 1
    assert min(only) >= 0 and found.accuracy < 1


def test_of_many_classes_only_the_most_frequent_answers_are_listed():
    torch.manual_seed(0)
    crossbar = Crossbar(nn.Linear(8, 1000), thg=0.1)
    images = torch.randn(300, 8)
    loader = [(images, crossbar.net(images).argmax(1))]
    worst = {"weight": torch.zeros(1000, 8)}
    told = diagnose(crossbar, loader, worst)["confusion"]
    counts = [entry["answers"] for entry in told["by_class"]]
    assert told["matrix"] is None and len(counts) == 20
    assert counts == sorted(counts, reverse=True) and counts[0] == loader[0][1].bincount().max()


def test_a_perturbation_outside_the_box_or_no_samples_are_refused(identity):
    loader = [(torch.eye(2), torch.tensor([0, 1]))]
    for perturbation in ({"weight": torch.full((2, 2), 0.6)}, {"other": torch.zeros(2, 2)}, {}):
        with pytest.raises(ValueError, match="within th_g"):
            diagnose(identity, loader, perturbation)
    with pytest.raises(ValueError, match="no samples"):
        diagnose(identity, [], identity.box.zero())


def test_at_th_g_zero_nothing_moves(identity):
    identity.thg = 0
    told = diagnose(identity, [(torch.eye(2), torch.tensor([0, 1]))], identity.box.zero(), full=True)
    assert told["perturbation"]["unmoved"] == 1 and told["perturbation"]["at_bound"] == 0
    assert told["layers"][0]["lowest_alone"] == 1


def test_a_network_with_batch_norm_is_diagnosed_under_inference_mode(small_net, small_batches):
    crossbar = Crossbar(small_net, thg=0.1, weight_bits=4)
    with torch.inference_mode():
        told = diagnose(crossbar, small_batches, crossbar.box.zero(), full=True, **FEW)
    assert told["accuracy"] == told["clean_accuracy"]
