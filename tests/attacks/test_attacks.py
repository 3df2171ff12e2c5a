"""What holds for every attack, and closed forms on networks whose worst case is known."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, PGD, Ensemble, MonteCarlo
from worstcase.attacks.passes import accuracy as accuracy_of

ATTACKS = {
    "flwc": FLWC(),
    "flwc by epoch": FLWC(update="epoch"),
    "lwc": LWC(),
    "lwc in the paper's free form": LWC(project="end", lr=0.02, trials=4),
    "lwc with rms": LWC(magnitude="rms"),
    "pgd": PGD(),
    "ensemble": Ensemble(),
    "monte carlo": MonteCarlo(instances=20),
    "monte carlo of devices that may fail": MonteCarlo(instances=20, sampler="programmed", max_pulses=9),
}
pytestmark = pytest.mark.usefixtures("short_ensemble")
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def accuracy_by_hand(crossbar, perturbation, batches):
    net = copy.deepcopy(crossbar.net).eval()
    with torch.no_grad():
        for name, deviation in perturbation.items():
            net.get_parameter(name).add_(deviation)
        right = [(net(images).argmax(1) == labels).float() for images, labels in batches]
    return torch.cat(right).double().mean().item()


@every_attack
def test_result_is_feasible_and_its_accuracy_is_that_of_its_perturbation(attack, small_net, small_batches):
    for thg in (0.01, 0.1, 1.0):
        crossbar = Crossbar(small_net, thg)
        found = attack(crossbar, small_batches, progress=False)
        assert found.feasible and found.max_relative_perturbation <= thg
        for name, bound in crossbar.bound().items():
            assert (found.perturbation[name].abs() <= bound).all()
        assert found.accuracy == pytest.approx(accuracy_by_hand(crossbar, found.perturbation, small_batches))
        zero = crossbar.box.zero()
        assert found.clean_accuracy == pytest.approx(accuracy_by_hand(crossbar, zero, small_batches))
        assert found.accuracy == min(entry["accuracy"] for entry in found.history)
        assert found.accuracy <= found.clean_accuracy and found.accuracy <= found.final_accuracy
        assert found.samples == 40


@every_attack
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_network_is_bit_for_bit_what_it_was(attack, mode, small_net, small_batches):
    small_net.train()
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    gradients = [p.grad for p in small_net.parameters()]
    with mode():
        attack(Crossbar(small_net, 0.1).train(), small_batches, progress=False)
    after = small_net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [p.grad for p in small_net.parameters()] == gradients == [None] * len(gradients)
    assert all(module.training for module in small_net.modules())


@every_attack
def test_same_again(attack, small_net, small_batches):
    first, second = (attack(Crossbar(small_net, 0.1), small_batches, progress=False) for _ in range(2))
    assert first.history == second.history
    assert all(torch.equal(first.perturbation[name], second.perturbation[name]) for name in first.perturbation)


@every_attack
def test_a_search_in_bfloat16_counts_in_the_networks_own(attack, small_net, small_batches):
    dtypes = {True: set(), False: set()}  # by whether gradients are followed
    crossbar = Crossbar(small_net, 0.1)
    crossbar(small_batches[0][0])  # it is looked at
    small_net[-1].register_forward_hook(lambda net, x, out: dtypes[torch.is_grad_enabled()].add(out.dtype))
    found = attack(crossbar, small_batches, progress=False, search_dtype="bfloat16")
    assert dtypes[False] == {torch.float32} and found.feasible
    scored_as_it_searches = isinstance(attack, PGD) or attack is ATTACKS["flwc by epoch"]
    if isinstance(attack, FLWC | LWC | Ensemble):
        assert (torch.bfloat16 in dtypes[True]) != scored_as_it_searches
    assert found.accuracy == pytest.approx(accuracy_by_hand(crossbar, found.perturbation, small_batches))
    assert found.parameters["search_dtype"] == "bfloat16"
    assert all(d.dtype == torch.float32 for d in found.perturbation.values())


def test_only_bfloat16_is_a_lower_dtype(small_net, small_batches):
    with pytest.raises(ValueError, match="search_dtype=float16: must be bfloat16, or None"):
        FLWC()(Crossbar(small_net, 0.1), small_batches, search_dtype="float16")


@every_attack
def test_without_tolerance_there_is_nothing_to_find(attack, small_net, small_batches):
    found = attack(Crossbar(small_net, 0.0), small_batches, progress=False)
    assert found.accuracy == found.clean_accuracy and found.passes == 1
    assert not any(d.any() for d in found.perturbation.values())


@every_attack
def test_cost_is_what_the_docstring_says(attack, small_net, small_batches):
    found = attack(Crossbar(small_net, 0.1), small_batches, progress=False)
    if isinstance(attack, FLWC):
        assert found.passes == (2 + 2 * attack.steps if attack.update == "epoch" else 1 + 3 * attack.steps)
    elif isinstance(attack, LWC):
        assert found.passes in [1 + 3 * attack.epochs * trials for trials in range(1, 9)]
    elif isinstance(attack, MonteCarlo):
        assert found.passes == 2 + attack.instances
    else:
        assert found.passes <= Ensemble().expected_passes(
            SimpleNamespace(classes=3, mini_batches=3, samples=40, weights=228)
        )
    passes = [entry["passes"] for entry in found.history]
    assert passes == sorted(passes) and passes[-1] == found.passes


@every_attack
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(attack, dtype, small_net, small_batches):
    batches = [(images.to(dtype), labels) for images, labels in small_batches]
    found = attack(Crossbar(small_net.to(dtype), 0.3), batches, progress=False)
    assert found.feasible and found.accuracy < found.clean_accuracy
    assert all(d.dtype == dtype for d in found.perturbation.values())


def labelled_by(crossbar, batches):
    """The same inputs, labelled with the network's own answers: its clean accuracy is 1."""
    return [(images, crossbar.eval()(images).argmax(1)) for images, _ in batches]


@every_attack
def test_quantised_networks(attack, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.3, weight_bits=4, activation_bits=4)
    crossbar.calibrate(small_batches)
    found = attack(crossbar, labelled_by(crossbar, small_batches), progress=False)
    assert found.feasible and found.accuracy < found.clean_accuracy == 1


@every_attack
def test_started_from_the_worst_of_a_smaller_bound_it_is_never_above_it(attack, small_net, small_batches):
    crossbar, start, accuracies = Crossbar(small_net, 0.0), None, []
    for thg in (0.005, 0.01, 0.011, 0.05, 0.2):
        crossbar.thg = thg
        found = attack(crossbar, small_batches, start=start, progress=False)
        assert found.feasible
        start = found.perturbation
        accuracies.append(found.accuracy)
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[-1] < accuracies[0]


@every_attack
def test_only_weights_that_may_move_are_moved(attack, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.4)
    batches = labelled_by(crossbar, small_batches)
    names = list(crossbar.programmed())
    mask = torch.zeros(3, 64)
    mask[:, ::2] = 1
    with torch.inference_mode():
        box = crossbar.box.restricted_to({names[1]: mask})
    found = attack(crossbar, batches, box=box, progress=False)
    assert found.feasible
    assert not found.perturbation[names[0]].any()
    assert found.perturbation[names[1]][:, ::2].any() and not found.perturbation[names[1]][:, 1::2].any()


def test_a_box_that_is_not_a_part_of_the_crossbars_is_refused(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    for box in (Crossbar(small_net, 0.11).box, Crossbar(small_net, 0.1, exclude=["0"]).box):
        with pytest.raises(ValueError, match=r"box is not a part of the crossbar's at th_g = 0\.1; use its"):
            FLWC()(crossbar, small_batches, box=box, progress=False)
    corner = crossbar.box.sample("vertex")
    with pytest.raises(ValueError, match="start is not in the box"):
        FLWC()(crossbar, small_batches, box=crossbar.box.scaled(0.5), start=corner, progress=False)


@pytest.mark.parametrize("attack", [FLWC(update="epoch"), PGD()])
def test_an_update_a_pass_does_not_depend_on_the_batch_size(attack, small_net, small_batches):
    """In float64; gradients that cancel to some 1e-17 may differ in sign, for one weight in a hundred at most."""
    net = small_net.double()
    images, labels = (torch.cat(part) for part in zip(*small_batches, strict=True))
    results = [
        attack(
            Crossbar(net, 0.1),
            list(zip(images.double().split(size), labels.split(size), strict=True)),
            progress=False,
        )
        for size in (1, 7, 40)
    ]
    for other in results[1:]:
        assert abs(other.accuracy - results[0].accuracy) <= 1 / 40
        for name, d in results[0].perturbation.items():
            assert (d != other.perturbation[name]).float().mean() <= 0.01


@every_attack
def test_layers_without_use_frozen_or_of_zeros_are_no_obstacle(attack):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.zero = (nn.Linear(2, 2, bias=False) for _ in range(3))
            nn.init.eye_(self.used.weight)
            nn.init.zeros_(self.zero.weight)

        def forward(self, x):
            return self.used(x) + self.zero(x)

    crossbar = Crossbar(Net().requires_grad_(False), 0.5)
    found = attack(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))], progress=False)
    assert found.accuracy == 0 and found.feasible


@pytest.mark.parametrize("attack", [FLWC(), FLWC(update="epoch"), LWC(), LWC(project="end", lr=0.1)])
@pytest.mark.parametrize("seed", range(10))
def test_linear_network_closed_form(attack, seed):
    """One sample, O = W x: the lowest margin in the box is at a vertex, margin - 2 bound |x|_1.

    With two classes the true row takes -bound sign(x) and the other +bound sign(x). Just above the th_g at
    which that reaches zero the attack must fail the sample, and just below nothing can.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 6, generator=generator))
    x = torch.randn(1, 6, generator=generator)
    logits = layer(x).detach()
    label = logits.argmax(1)
    critical = (logits.max() - logits.min()) / (2 * layer.weight.abs().max() * x.abs().sum())
    for factor, accuracy in ((1.001, 0.0), (0.999, 1.0)):
        crossbar = Crossbar(layer, factor * critical.item())
        assert attack(crossbar, [(x, label)], progress=False).accuracy == accuracy


def test_flwc_is_algorithm_1_on_one_step():
    """By hand: one batch, one step of the whole bound against the sign of the hinge's gradient."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    images, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
    found = FLWC(steps=1)(Crossbar(layer, 0.5), [(images, labels)], progress=False)
    # by row of W: sample 1 adds (2, 1) to row 0 and takes it from row 1, sample 2 (0, 3) the other way
    gradient = torch.tensor([[2.0, 1.0 - 3.0], [-2.0, -1.0 + 3.0]])
    perturbed = layer.weight.detach() - 0.5 * gradient.sign()
    expected = ((images @ perturbed.T).argmax(1) == labels).double().mean().item()
    assert found.final_accuracy == expected == 0.5
    assert torch.equal(found.perturbation["weight"], -0.5 * gradient.sign())


def test_flwc_updates_once_a_batch_and_never_leaves_the_box(small_net, small_batches):
    """Algorithm 1 as printed would take batches x steps steps of bound / steps and leave the box."""
    seen = []
    crossbar = Crossbar(small_net, 0.1)
    crossbar.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    FLWC(steps=2)(crossbar, small_batches, progress=False)
    assert len(seen) == 3 + 2 * (3 + 3)


def test_free_lwc_finds_the_largest_feasible_c(small_net, small_batches):
    found = LWC(project="end", lr=0.1, trials=12)(Crossbar(small_net, 0.1), small_batches, progress=False)
    last = {entry["c"]: entry for entry in found.history[1:]}  # each trial's last entry
    assert len(last) > 3
    feasible = [c for c, entry in last.items() if entry["magnitude"] <= 1]
    infeasible = [c for c, entry in last.items() if entry["magnitude"] > 1]
    assert max(feasible) < min(infeasible)
    assert found.final_accuracy == last[max(feasible)]["accuracy"]


def test_projected_lwc_needs_one_trial(small_net, small_batches):
    found = LWC()(Crossbar(small_net, 0.1), small_batches, progress=False)
    assert {entry["c"] for entry in found.history[1:]} == {1e3}


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (FLWC, {"steps": 0}, "steps=0: must be 1 or more"),
        (FLWC, {"update": "never"}, "must be batch or epoch"),
        (LWC, {"epochs": 0}, "must be 1 or more"),
        (LWC, {"lr": -1.0}, "lr=-1.0: must be above 0"),
        (LWC, {"c_range": (1.0, 0.5)}, "the smaller first"),
        (LWC, {"project": "never"}, "must be step or end"),
        (FLWC, {"steps": 10.0}, r"steps=10\.0: must be a whole number, 1 or more"),
        (PGD, {"steps": True}, "steps=True: must be a whole number, 1 or more"),
        (LWC, {"epochs": 2.5}, r"epochs=2\.5: must be a whole number, 1 or more"),
        (LWC, {"trials": "8"}, "trials='8': must be a whole number, 1 or more"),
        (LWC, {"lr": float("nan")}, "lr=nan: must be above 0 and finite, in units of the bound"),
        (LWC, {"lr": True}, "lr=True: must be a number, above 0"),
        (LWC, {"c_range": (1.0, float("inf"))}, "must be two finite numbers above 0"),
        (LWC, {"c_range": (1.0, 2.0, 3.0)}, "must be two finite numbers above 0"),
        (LWC, {"c_range": 3.0}, "must be two finite numbers above 0"),
    ],
)
def test_settings_out_of_range(attack, options, message):
    with pytest.raises(ValueError, match=message):
        attack(**options)


@pytest.mark.parametrize("attack", [FLWC(), LWC(), PGD(), Ensemble(rounds=1)])
def test_gradients_that_are_not_finite_are_no_sign_of_safety(attack):
    class Net(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return out + torch.sqrt(out * 0)  # 0 forward, not a number backward

    batches = [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))]
    batches = labelled_by(Crossbar(Net(4, 3), 0.1), batches)
    found = attack(Crossbar(Net(4, 3), 0.1), batches, progress=False)
    assert found.feasible and (found.vanished == 1 or found.accuracy == 0)


@every_attack
def test_batches_of_one_sample_and_one_batch_of_all(attack, small_net, small_batches):
    images, labels = (torch.cat(part)[:12] for part in zip(*small_batches, strict=True))
    for size in (1, 12):
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        found = attack(Crossbar(small_net, 0.05), batches, progress=False)
        assert found.feasible and found.samples == 12


def test_a_reference_set_that_can_be_gone_through_once_is_refused(small_net, small_batches):
    with pytest.raises(ValueError, match="only once; give a list or a DataLoader"):
        FLWC()(Crossbar(small_net, 0.1), iter(small_batches), progress=False)


def relabelled(change):
    """Batches whose labels, or more of them, are something else."""
    return lambda batches: [change(images, labels) for images, labels in batches]


WRONG_DATA = {
    "a label of -1": (relabelled(lambda x, y: (x, y - 1)), "each label must be 0 to 2, but one is -1"),
    "a label too many": (relabelled(lambda x, y: (x, y + 1)), "each label must be 0 to 2, but one is 3"),
    "floats": (relabelled(lambda x, y: (x, y.float())), r"labels of torch\.float32: give each the number"),
    "a column": (relabelled(lambda x, y: (x, y[:, None])), r"outputs \(\d+, 3\) with labels \(\d+, 1\)"),
    "one label short": (relabelled(lambda x, y: (x, y[1:])), r"\d+ inputs and torch\.int64 labels of shape"),
    "a list": (relabelled(lambda x, y: (x, y.tolist())), "its labels are a list; make them a tensor"),
    "three parts": (
        relabelled(lambda x, y: (x, y, y)),
        r"must be \(inputs, labels\), tensors with a label for each input, or a dict",
    ),
    "a mapping": (relabelled(lambda x, y: {"x": x, "y": y}), "or a dict with labels, not a dict of x, y"),
    "images alone": (relabelled(lambda x, y: x), r"must be \(inputs, labels\), tensors with a label for"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_DATA.values(), ids=WRONG_DATA.keys())
@pytest.mark.parametrize(
    "scored", [FLWC(), MonteCarlo(instances=3), accuracy_of], ids=["flwc", "monte carlo", "one"]
)
def test_labels_that_do_not_belong_to_the_network_are_named(scored, wrong, message, small_net, small_batches):
    batches = small_batches[:2] + wrong(small_batches)[2:] if scored is accuracy_of else wrong(small_batches)
    with pytest.raises(ValueError, match=message) as error:
        scored(Crossbar(small_net, 0.1), batches)
    assert "label" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda out: out[:, :, None], r"outputs \(16, 3, 1\) with labels \(16,\): expected outputs \(N, C\)"),
        (lambda out: out[1:], r"outputs \(15, 3\) with labels \(16,\)"),
        (lambda out: {"scores": out}, "a tuple whose first is a tensor, not a dict"),
    ],
)
def test_outputs_that_are_no_scores_of_classes_are_named(head, message, small_net, small_batches):
    small_net.register_forward_hook(lambda module, inputs, out: head(out))
    with pytest.raises(ValueError, match=message):
        FLWC()(Crossbar(small_net, 0.1), small_batches, progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_size(dtype, small_net, small_batches):
    expected = FLWC(steps=2)(Crossbar(small_net, 0.1), small_batches, progress=False)
    batches = [(images, labels.to(dtype)) for images, labels in small_batches]
    assert FLWC(steps=2)(Crossbar(small_net, 0.1), batches, progress=False).history == expected.history


def test_labels_are_looked_at_in_the_first_pass_alone(small_net, small_batches, monkeypatch):
    """Since looking at their values waits for the device."""
    looked = []
    monkeypatch.setattr("worstcase.attacks.search.check", lambda out, labels: looked.append(len(labels)))
    FLWC(steps=2)(Crossbar(small_net, 0.1), small_batches, progress=False)
    assert looked == [16, 16, 8]


@every_attack
@pytest.mark.parametrize("full_scale", ["layer_max", "unit"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(attack, full_scale, value, small_net, small_batches):
    with torch.no_grad():
        small_net[5].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"^5\.weight: weights or their bound are not finite; check the network"):
        attack(Crossbar(small_net, 0.1, full_scale=full_scale), small_batches, progress=False)


@pytest.mark.parametrize("attack", [LWC(lr=1e300), LWC(lr=1e300, project="end"), LWC(c_range=(1.0, 1e300))])
def test_settings_too_large_to_compute_with_are_no_defect_of_the_attack(attack, small_net, small_batches):
    with pytest.raises(ValueError, match="steps are too large; lower lr or c_range"):
        attack(Crossbar(small_net, 0.1), small_batches, progress=False)


@every_attack
def test_inputs_that_are_not_finite_are_no_defect_of_the_attack(attack, small_net, small_batches):
    batches = [(images * torch.inf, labels) for images, labels in small_batches]
    assert attack(Crossbar(small_net, 0.1), batches, progress=False).feasible


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda d: {name: x + 9 for name, x in d.items()}, r"not in the box at th_g = 0\.1; use box\.project"),
        (lambda d: {name: x * torch.nan for name, x in d.items()}, "not in the box"),
        (
            lambda d: d | {"fc.weight": torch.zeros(3)},
            r"start has fc\.weight, but the arrays are 0\.weight, 5\.weight",
        ),
        (lambda d: {"0.weight": d["0.weight"]}, r"start needs a deviation of 5\.weight of its shape \(3, 64\)"),
        (lambda d: {name: x.flatten() for name, x in d.items()}, r"0\.weight of its shape \(4, 1, 3, 3\)"),
    ],
)
def test_a_start_that_is_no_perturbation_within_the_bound_is_refused(start, message, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    with pytest.raises(ValueError, match=message):
        FLWC()(crossbar, small_batches, start=start(crossbar.box.zero()), progress=False)


def test_an_empty_reference_set_is_refused(small_net):
    with pytest.raises(ValueError, match="no samples"):
        FLWC()(Crossbar(small_net, 0.1), [], progress=False)
