"""What holds for every attack."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from worstcase import Crossbar, attacks
from worstcase.attacks import FLWC, LWC, PGD, Ensemble, MonteCarlo
from worstcase.attacks.base import TAKEN
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
def test_a_batch_without_samples_does_not_matter(attack, small_net, small_batches):
    empty = tuple(part[:0] for part in small_batches[0])
    found = attack(Crossbar(small_net, 0.1), [empty, *small_batches, empty], progress=False)
    assert found.samples == 40 and found.clean_accuracy > 0 and found.feasible


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


@every_attack
def test_inputs_that_were_made_in_inference_mode_are_as_any_others(attack, small_net, small_batches):
    with torch.inference_mode():
        batches = [(images.clone(), labels.clone()) for images, labels in small_batches]
    first, second = (attack(Crossbar(small_net, 0.1), of, progress=False) for of in (small_batches, batches))
    assert first.history == second.history


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
def test_a_start_of_more_digits_is_scored_as_it_is_kept(attack):
    net = nn.Linear(1, 2, bias=False).bfloat16()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0], [1.0078125]]))
    crossbar, batches = Crossbar(net, 0.05), [(torch.ones(1, 1).bfloat16(), torch.tensor([1]))]
    start = {"weight": torch.tensor([[0.0078124], [0.0]])}
    found = attack(crossbar, batches, start=start, progress=False)
    scored = [entry["accuracy"] for entry in found.history if entry.get("start")]
    assert scored == [accuracy_of(crossbar, batches, {"weight": start["weight"].bfloat16()})]
    assert found.accuracy == accuracy_of(crossbar, batches, found.perturbation)


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


@every_attack
@pytest.mark.parametrize("full_scale", ["layer_max", "unit"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(attack, full_scale, value, small_net, small_batches):
    with torch.no_grad():
        small_net[5].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"^5\.weight: weights or their bound are not finite; check the network"):
        attack(Crossbar(small_net, 0.1, full_scale=full_scale), small_batches, progress=False)


@every_attack
def test_inputs_of_which_the_network_makes_nan_are_refused(attack, small_net, small_batches):
    batches = [(images * torch.inf, labels) for images, labels in small_batches]
    with pytest.raises(ValueError, match=r"^the network as programmed gives NaN for 40 of 40 answers: "):
        attack(Crossbar(small_net, 0.1), batches, progress=False)


def test_names_that_others_may_not_take_are_those_of_all_attacks():
    ours = [one for one in vars(attacks).values() if isinstance(one, type) and issubclass(one, attacks.Attack)]
    assert {one.name for one in ours if one is not attacks.Attack} | {"clean"} == set(TAKEN)
