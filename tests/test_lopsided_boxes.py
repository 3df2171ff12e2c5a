"""Boxes whose ends differ, weight by weight: what holds for every attack, method and proof."""

from itertools import product

import pytest
import torch
from torch import nn
from two_classes import two_classes

from worstcase import Crossbar, DeviceMapping, Tolerance, evaluate
from worstcase.attacks import FLWC, LWC, PGD, Ensemble, MonteCarlo
from worstcase.attacks.passes import accuracy
from worstcase.certificate import certify
from worstcase.evaluation.sensitivity import importance
from worstcase.methods import MTLIBP, PGDAT, ATrice, Trice, UniversalAT, VariationAware

FALLING = Tolerance([0, 0.4, 1], [0, -0.1, -0.6], [0.3, 0.05, 0])
"""Small weights may only grow, large ones only shrink."""
LOPSIDED = Tolerance([0, 0.5, 1], [-0.05, -0.5, -0.2], [0.4, 0.1, 0.5], [0.1, 0.2, 0.1])
TABLES = {"falling": FALLING, "lopsided": LOPSIDED}
ATTACKS = {
    "flwc": FLWC(),
    "flwc by epoch": FLWC(update="epoch"),
    "lwc": LWC(),
    "lwc in the paper's free form": LWC(project="end", lr=0.02, trials=4),
    "lwc with rms": LWC(magnitude="rms"),
    "pgd": PGD(),
    "ensemble": Ensemble(),
    **{
        f"monte carlo, {sampler}": MonteCarlo(instances=20, sampler=sampler)
        for sampler in ("truncated_gaussian", "uniform", "vertex", "gaussian", "right_censored_gaussian")
    },
    "monte carlo of devices that may fail": MonteCarlo(instances=20, sampler="programmed", max_pulses=1),
}
pytestmark = pytest.mark.usefixtures("short_ensemble")
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
every_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
MAY_LEAVE = {"gaussian", "right_censored_gaussian", "programmed"}
MAPPINGS = [DeviceMapping(), DeviceMapping(pair=True, cut_off=True)]


@every_attack
@every_table
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_what_is_found_is_feasible_and_recomputed(attack, table, mapping, small_net, small_batches):
    crossbar = Crossbar(small_net, table, mapping=mapping)
    found = attack(crossbar, small_batches, progress=False)
    box = crossbar.box
    for name, d in found.perturbation.items():
        assert (d >= box.low[name]).all() and (d <= box.high[name]).all()
        assert d.any() or getattr(attack, "sampler", None) in MAY_LEAVE
    assert found.feasible and found.max_relative_perturbation <= crossbar.thg == found.thg
    assert found.accuracy == accuracy(crossbar, small_batches, found.perturbation) <= found.clean_accuracy


def tiny(seed):
    """A network of 6 weights on 12 samples, labelled with its own answers; the worst of all 64 vertices."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.randn(3, 2, generator=generator))
    x = torch.randn(12, 2, generator=generator)
    return net, [(x, net(x).argmax(1))]


def worst_vertex(crossbar, batches):
    box = crossbar.box
    low, high = (end["weight"].expand(3, 2).flatten() for end in (box.low, box.high))
    lowest = 1.0
    for corner in product((False, True), repeat=6):
        d = torch.where(torch.tensor(corner), high, low).view(3, 2)
        lowest = min(lowest, accuracy(crossbar, batches, {"weight": d}))
    return lowest


@every_table
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_ensemble_finds_the_worst_vertex_of_tiny_networks(table, mapping, seed):
    net, batches = tiny(seed)
    crossbar = Crossbar(net, table.scaled(0.6), mapping=mapping)
    assert Ensemble()(crossbar, batches, progress=False).accuracy <= worst_vertex(crossbar, batches)


@every_table
@pytest.mark.parametrize("method", [PGDAT, MTLIBP])
def test_one_whole_step_in_training_reaches_an_end(table, method):
    torch.manual_seed(0)
    module = method(Crossbar(nn.Linear(6, 3, bias=False), table), num_classes=3)
    box, inputs, labels = module.crossbar.box, torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    found = module.found_by_steps(box, inputs, labels, steps=1, step=1.0)["weight"]
    assert ((found == box.low["weight"]) | (found == box.high["weight"])).all()


ONE_BY_ONE = [FLWC(), FLWC(update="epoch"), LWC(), LWC(project="end", lr=0.1), PGD()]


@every_table
@pytest.mark.parametrize("attack", ONE_BY_ONE)
@pytest.mark.parametrize("seed", range(5))
def test_linear_network_closed_form(table, attack, seed):
    """Two classes, one sample: the worst chip is a vertex, at which each weight's end lowers the margin most."""
    layer, x, logits, label = two_classes(seed)
    sign = torch.full((2, 1), -1.0)
    sign[label] = 1
    box = Crossbar(layer, table).box
    slope = sign * x
    fall = -torch.minimum(slope * box.low["weight"], slope * box.high["weight"]).sum()
    critical = ((logits.max() - logits.min()) / fall).item()
    if critical > 0.99:
        pytest.skip("nothing in the table's box reaches it")
    for factor, expected in ((1.002, 0.0), (0.998, 1.0)):
        crossbar = Crossbar(layer, table.scaled(factor * critical))
        assert attack(crossbar, [(x, label)], progress=False).accuracy == expected


@every_table
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("seed", range(3))
def test_no_vertex_and_no_attack_is_below_what_is_proven(table, mapping, seed):
    net, batches = tiny(seed)
    for share in (0.02, 0.1, 0.3, 1.0):
        crossbar = Crossbar(net, table.scaled(share), mapping=mapping)
        proven, lowest = certify(crossbar, batches).accuracy, worst_vertex(crossbar, batches)
        assert proven <= lowest <= 1
        assert proven <= Ensemble(rounds=1)(crossbar, batches, progress=False).accuracy
        for _ in range(50):
            assert proven <= accuracy(crossbar, batches, crossbar.box.sample("uniform"))


def test_what_is_proven_of_one_layer_is_exact():
    """A sample is proven right up to the scale at which its worst vertex fails, and not above."""
    net, batches = tiny(0)
    for table in TABLES.values():
        for share in torch.linspace(0.02, 1, 25).tolist():
            crossbar = Crossbar(net, table.scaled(share))
            one_by_one = [(x[None], y[None]) for x, y in zip(*batches[0], strict=True)]
            fails = [worst_vertex(crossbar, [sample]) == 0 for sample in one_by_one[:3]]
            assert certify(crossbar, one_by_one[:3]).certified.tolist() == [not f for f in fails]


def test_an_evaluation_by_conductance_and_by_array(small_net, small_batches):
    for thg in (LOPSIDED, {"5*": 0.05, "*": LOPSIDED.scaled(0.2)}):
        crossbar = Crossbar(small_net, thg, mapping=DeviceMapping(cut_off=True))
        largest = crossbar.thg
        result = evaluate(
            crossbar, small_batches, [FLWC(), LWC(epochs=3)], thgs=[largest / 3, largest], diagnosis="full",
            progress=False,
        )  # fmt: skip
        assert result.thg == largest == crossbar.thg and crossbar.tolerance == thg
        assert (result.certified_accuracy or 0) <= result.attacked_accuracy <= result.clean_accuracy
        by_thg = sorted((f.thg, f.accuracy) for f in result.attacks if f.attack == "flwc")
        assert by_thg[0][1] >= by_thg[1][1] and by_thg[0][0] == pytest.approx(largest / 3)
        assert result.record().tolerance is not None
        for share in (0.1, 0.37, 0.7):  # exactly what was asked for, however it is rounded
            one = evaluate(crossbar, small_batches, [FLWC()], thgs=[share * largest], progress=False)
            assert one.thg == share * largest and one.record().thg == one.thg


def test_a_weight_matters_as_much_as_the_end_that_lowers_the_margin():
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    found = importance(Crossbar(net, FALLING), [(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))])
    # class 0 is right: its row lowers the margin by falling, the other by rising; 0 may have either sign
    torch.testing.assert_close(found["weight"], torch.tensor([[0.6, 0.15], [0.3, 0.0]]))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (VariationAware, {"sigma": None}),
        (VariationAware, {"sigma": None, "verified": True}),
        (Trice, {"sigma": None}),
        (ATrice, {"sigma": None}),
        (PGDAT, {}),
        (UniversalAT, {}),
    ],
)
def test_methods_train_with_such_a_box(method, options, small_net, small_batches):
    crossbar = Crossbar(small_net, LOPSIDED)
    trained = method(crossbar, num_classes=3, **options)
    loss = trained.training_loss(*small_batches[0])
    loss.backward()
    if method is UniversalAT:
        trained.on_after_backward()
        adversary = {name: d.detach() for name, d in trained._adversary.items()}
        assert crossbar.box.scaled(1.5).contains(adversary)
    assert loss.isfinite() and all(w.grad is not None and w.grad.any() for w in crossbar.arrays().values())


def test_an_adversary_reaches_both_ends():
    """Sign steps from zero, as many as reach the end of a symmetric box, reach the farther end of any."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [0.9]]))
    for table in (Tolerance([0, 1], [0, 0], [0.5, 0.5]), Tolerance([0, 1], [-0.5, -0.5], [0, 0])):
        crossbar = Crossbar(net, table)
        found = FLWC(steps=3, objective="cross_entropy")(
            crossbar, [(torch.ones(1, 1), torch.tensor([0]))], progress=False
        )
        box = crossbar.box
        ends = torch.stack([box.low["weight"][0], box.high["weight"][1]])
        torch.testing.assert_close(found.perturbation["weight"], ends)


@pytest.mark.parametrize("seed", range(3))
def test_which_of_the_devices_that_may_be_stuck_fail_is_the_attacks_choice(seed):
    net, batches = tiny(seed)
    nan = torch.nan
    stuck = {"weight": torch.tensor([[0.0, nan], [nan, 1.0], [nan, nan]])}
    crossbar, sound = Crossbar(net, 0.05, stuck=stuck), Crossbar(net, 0.05)
    lowest = worst_vertex(crossbar, batches)
    assert Ensemble()(crossbar, batches, progress=False).accuracy <= lowest <= worst_vertex(sound, batches)
    result = evaluate(crossbar, batches, [FLWC()], progress=False)
    assert (result.certified_accuracy or 0) <= lowest and result.record().config["stuck"] == {"weight": 2}
    assert "largest weight, as far as a stuck weight may be off\n" in str(result)


def test_a_table_is_of_the_tensor_that_the_layer_multiplies_with():
    """Of a binary layer every conductance is the largest."""

    class Signs(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight.sign())

    layer = Signs(3, 2, bias=False)
    box = Crossbar(layer, FALLING).box
    signs = layer.weight.detach().sign()
    torch.testing.assert_close(box.low["weight"], torch.where(signs > 0, -0.6, 0.0))
    torch.testing.assert_close(box.high["weight"], torch.where(signs > 0, 0.0, 0.6))
