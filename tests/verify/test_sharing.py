"""Pulses shared out among weights, against brute force where the worst chip is known."""

import pytest
import torch
from torch import nn

from worstcase import Crossbar, DeviceMapping, attacks
from worstcase.app.ranges import CHOICES
from worstcase.attacks import Attack
from worstcase.paper import pulses
from worstcase.verify.cost import Programming
from worstcase.verify.sharing import OURS, WAYS, Sharing, cheapest, tightened

IMAGES, LABELS = torch.tensor([[1.0, 0.1], [0.0, 1.0], [2.0, 0.1]]), torch.tensor([0, 1, 0])


class WorstVertices(Attack):
    """Of a linear layer with two classes: the vertex that is worst for each image."""

    name = "worst_vertices"

    def search(self, run):
        for inputs, labels in run.batches():
            for x, y in zip(inputs, labels, strict=True):
                signs = torch.stack([x.sign() if row != y else -x.sign() for row in range(2)])
                run.score(run.box.at({"weight": signs}))

    def expected_passes(self, run):
        return 2 + run.samples


def linear(images=IMAGES, labels=LABELS):
    crossbar = Crossbar(nn.Linear(2, 2, bias=False), 0.1)
    with torch.no_grad():
        crossbar.net.weight.copy_(torch.eye(2))
    return crossbar, [(images, labels)]


def holds(thg, images=IMAGES, labels=LABELS):
    """Whether every chip is right: of the margin, x_y - x_other, each weight takes th_g times its input."""
    margins = (images[:, 0] - images[:, 1]).double() * (1 - 2 * labels)
    return bool((margins > (images.double() @ thg.double().sum(0))).all())


def test_no_sharing_on_a_grid_is_cheaper():
    crossbar, data = linear()
    programming = Programming(sigma=1.0)
    options = {"attack": WorstVertices(), "programming": programming, "precision": 0.01, "progress": False}
    found = cheapest(crossbar, data, 1.0, 20.0, **options)
    thg = found.thg["weight"]
    assert holds(thg) and crossbar.thg == 0.1
    assert programming.pulses(thg).mean().item() == pytest.approx(found.pulses_per_weight, rel=1e-3)
    grid = torch.linspace(0.01, 0.5, 100, dtype=torch.double)
    cost = programming.pulses(grid)
    # of both rows alike: the cost is convex, so it is least there
    left, right = torch.meshgrid(grid, grid, indexing="ij")
    fine = ((IMAGES[:, 0] - IMAGES[:, 1]).double() * (1 - 2 * LABELS))[:, None, None] > 2 * (
        IMAGES.double()[:, 0, None, None] * left + IMAGES.double()[:, 1, None, None] * right
    )
    least = ((cost[:, None] + cost) / 2)[fine.all(0)].min().item()
    same = programming.pulses(max(t for t in grid.tolist() if holds(torch.full((2, 2), t)))).item()
    assert 0.98 * least <= found.pulses_per_weight <= 1.05 * least
    assert found.pulses_per_weight < 0.97 * same


def test_a_chip_that_was_found_is_learnt_from():
    """By the gradient as programmed, images that are far from wrong count as those that nearly are."""
    images, labels = torch.tensor([[5.0, 0.0], [0.2, 0.6]]), torch.tensor([0, 1])
    crossbar, data = linear(images, labels)
    attack = WorstVertices()

    def lowest(rounds):
        thg = tightened(crossbar, data, 4.0, attack=attack, rounds=rounds, progress=False)
        with crossbar.bounded_by(thg):
            return attack(crossbar, data, progress=False).accuracy

    assert lowest(6) >= lowest(0)
    sharing = Sharing(crossbar, data)
    before = sharing.tolerances(4.0)["weight"]
    sharing.learn({"weight": torch.tensor([[0.0, 0.0], [0.3, -0.9]])})  # wrong on the second image
    after = sharing.tolerances(4.0)["weight"]
    assert (after[:, 1] < before[:, 1]).all()


@pytest.mark.parametrize("by", WAYS)
def test_every_way_spends_the_same_pulses(by, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    thg = tightened(crossbar, small_batches, 4.0, by=by, attack=attacks.FLWC(steps=2), rounds=2, progress=False)
    weights = crossbar.programmed()
    flat = torch.cat(
        [torch.as_tensor(thg[name]).double().expand(w.shape).flatten() for name, w in weights.items()]
    )
    assert Programming().pulses(flat).mean().item() == pytest.approx(4.0, rel=1e-3)
    assert all(isinstance(one, float) for one in thg.values()) == (by == "array")
    with crossbar.bounded_by(thg):
        found = attacks.FLWC(steps=2)(crossbar, small_batches, progress=False)
        assert crossbar.box.contains(found.perturbation)
    assert crossbar.thg == 0.05


@pytest.mark.parametrize("by", ["random", "swim"])
def test_what_is_drawn_follows_the_seed(by, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    first, again, other = (
        tightened(crossbar, small_batches, 4.0, by=by, seed=seed)["5.weight"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_cannot_be_shared_out_is_said(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    with pytest.raises(ValueError, match="by='best': must be same, random"):
        tightened(crossbar, small_batches, 4.0, by="best")
    with pytest.raises(ValueError, match="pulses=2"):
        tightened(crossbar, small_batches, 2.0, rounds=0)
    with pytest.raises(ValueError, match="most=1"):
        cheapest(crossbar, small_batches, 0.5, 1)
    with pytest.raises(ValueError, match="pulses cannot be shared out: only where"):
        tightened(Crossbar(small_net, 0.05, mapping=DeviceMapping(cut_off=True)), small_batches, 4.0)
    with pytest.raises(ValueError, match="pulses cannot be shared out: only where th_g is in units of each layer"):
        tightened(Crossbar(small_net, 0.05, full_scale="unit"), small_batches, 4.0)
    nn.init.zeros_(crossbar.net[-1].weight)  # as heads are before training
    nn.init.zeros_(crossbar.net[-1].bias)
    with pytest.raises(ValueError, match="by='weight': no weight seems to matter: all gradients are zero"):
        tightened(crossbar, small_batches, 4.0)
    assert set(OURS) < set(WAYS)


def test_what_no_number_of_pulses_keeps_has_no_answer():
    crossbar, data = linear(torch.tensor([[1.0, 0.99]]), torch.tensor([0]))
    assert cheapest(crossbar, data, 1.0, 2.5, attack=WorstVertices(), progress=False) is None


class Needs(Attack):
    """Fails where a weight has so many pulses: more, the more of its runs there were."""

    name = "needs"

    def __init__(self, *pulses):
        self.pulses = pulses
        self.tried = []

    def search(self, run):
        self.tried.append(Programming().pulses(run.crossbar.box.high["weight"].double()).mean().item())
        if self.tried[-1] < self.pulses[min(len(self.tried), len(self.pulses)) - 1]:
            run.score(run.box.at({"weight": torch.tensor([[-1.0, -1.0], [1.0, 1.0]])}))

    def expected_passes(self, run):
        return 2


def test_the_most_pulses_are_tried_before_there_is_no_answer():
    crossbar, data = linear(torch.tensor([[1.0, 0.999]]), torch.tensor([0]))
    attack = Needs(*[3.5] * 30, 5.0)
    assert cheapest(crossbar, data, 1.0, 4.0, by="same", attack=attack, progress=False).pulses_per_weight < 3.6
    never = Needs(9.0)
    assert cheapest(crossbar, data, 1.0, 4.0, by="same", attack=never, progress=False) is None
    assert never.tried[-1] == pytest.approx(4.0, rel=1e-5)
    late = Needs(*[3.9] * len(attack.tried[:-1]), 3.99)  # the long attack finds more than the short ones
    assert cheapest(crossbar, data, 1.0, 4.0, by="same", attack=late, progress=False).pulses_per_weight > 3.99


def test_the_pulses_that_are_told_are_those_of_the_tolerances():
    crossbar, data = linear()
    for sigma in (0.1, 1.0):  # at which even the widest bound takes 2.9 pulses
        programming = Programming(sigma=sigma, weight_bits=2, device_bits=1)
        options = {"by": "weight", "attack": WorstVertices(), "programming": programming, "progress": False}
        found = cheapest(crossbar, data, 1.0, 40.0, **options)
        assert found.pulses_per_weight == pytest.approx(programming.pulses(found.thg["weight"]).mean().item())


def test_command_and_report_know_the_same_ways():
    assert list(CHOICES["share"]) == list(WAYS) == list(pulses.WAYS)
