"""The ensemble against brute force, planted worst cases, and its own members."""

import itertools
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from worstcase import Crossbar, evaluate
from worstcase.attacks import FLWC, LWC, PGD, Ensemble, mini_batches
from worstcase.attacks.ensemble import FINISHES, FIRST, INTO_ONE_CLASS, MEMBERS, TWO_CLASSES, Start, _Team
from worstcase.attacks.half import Half
from worstcase.attacks.passes import accuracy
from worstcase.attacks.search import Search
from worstcase.chip.box import Box


def tiny_network(seed):
    """At most 16 perturbed weights, several samples: the minimum over all vertices can be counted out."""
    generator = torch.Generator().manual_seed(seed)
    inputs, hidden, classes = [(2, 4, 2), (2, 3, 3), (3, 3, 2), (4, 0, 4), (1, 5, 2)][seed % 5]
    torch.manual_seed(seed)
    net = (
        nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        if hidden
        else nn.Sequential(nn.Linear(inputs, classes))
    )
    images = torch.randn(12, inputs, generator=generator)
    labels = net(images).argmax(1)
    labels[0] = (labels[0] + 1) % classes  # one that is wrong from the start
    return net, [(images, labels)]


def lowest_over_all_vertices(crossbar, batches):
    bounds = crossbar.bound()
    names, sizes = zip(*((name, w.numel()) for name, w in crossbar.programmed().items()), strict=True)
    weights = crossbar.programmed()
    assert sum(sizes) <= 16
    (images, labels) = batches[0]

    def correct(signs):
        d = {
            name: bounds[name] * part.view_as(weights[name])
            for name, part in zip(names, signs.split(sizes), strict=True)
        }
        return (torch.func.functional_call(crossbar, {}, (images, d)).argmax(1) == labels).sum()

    crossbar(images)  # the look at the first batch would not be possible in vmap
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=sum(sizes))))
    with torch.no_grad():
        counts = torch.func.vmap(correct, chunk_size=4096)(every)
    return counts.min().item() / len(labels)


class Reached(Exception):  # noqa: N818 (no error)
    """The lowest that there is has been found, so the rest of the search is left out."""


def test_it_finds_the_lowest_of_all_vertices_on_tiny_networks(monkeypatch):
    score, missed = Search.score, []
    for seed in range(20):
        net, batches = tiny_network(seed)
        crossbar = Crossbar(net, (0.1, 0.2, 0.4)[seed % 3])
        lowest = round(12 * lowest_over_all_vertices(crossbar, batches))

        def until_reached(self, *args, lowest=lowest, **context):
            if round(12 * (accuracy := score(self, *args, **context))) <= lowest:
                raise Reached
            return accuracy

        monkeypatch.setattr(Search, "score", until_reached)
        with suppress(Reached):
            found = Ensemble()(crossbar, batches, progress=False)
            missed.append((seed, round(12 * found.accuracy) - lowest))
    assert len(missed) <= 1 and all(difference == 1 for _, difference in missed), missed


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_a_planted_worst_case(seed):
    """Every sample's margin falls only if one pattern of signs is met: O_0 - O_1 = 1 - w . s / (0.9 n thg)."""
    n = 64
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (n,), generator=generator) * 2.0 - 1
    net = nn.Linear(n + 1, 2, bias=False)
    with torch.no_grad():
        net.weight.zero_()
        net.weight[0, n], net.weight[1, 0] = 1.0, 0.0
    x = torch.cat([signs / (1.8 * n * 0.1), torch.ones(1)])
    crossbar = Crossbar(net, 0.1)
    batches = [(x.repeat(8, 1), torch.zeros(8, dtype=torch.long))]
    box = crossbar.box
    random = [accuracy(crossbar, batches, box.sample("vertex", generator)) for _ in range(200)]
    assert min(random) == 1.0  # chance does not meet it
    assert Ensemble()(crossbar, batches, progress=False).accuracy == 0.0


def test_it_is_never_above_its_members_other_attacks_or_random_vertices(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05).eval()
    found = Ensemble()(crossbar, small_batches, progress=False)
    finishes = [member for _, member in FINISHES]
    assert [member["member"] for member in found.members] == [
        member.name for member in (FIRST, *MEMBERS, INTO_ONE_CLASS, TWO_CLASSES, *finishes)
    ]
    for member in found.members:
        assert found.accuracy <= member["lowest"] and member["passes"] > 0
    alone = {member["member"]: member["accuracy"] for member in found.members}
    assert {name for name, accuracy in alone.items() if accuracy is not None} == {m.name for m in MEMBERS}
    for attack in (FLWC(), FLWC(update="epoch"), LWC(), PGD()):
        assert found.accuracy <= attack(crossbar, small_batches, progress=False).accuracy
    generator = torch.Generator().manual_seed(0)
    box = crossbar.box
    assert found.accuracy <= min(
        accuracy(crossbar, small_batches, box.sample("vertex", generator)) for _ in range(300)
    )


@pytest.mark.usefixtures("short_ensemble")
def test_a_budget_is_kept_and_a_larger_one_does_all_that_a_smaller_one_does(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.02)
    histories, accuracies = [], []
    for budget in (5, 20, 31, 60, 150, 400):  # within the first round, a finish, further rounds
        found = Ensemble(budget=budget)(crossbar, small_batches, progress=False)
        assert found.passes <= budget and found.members[0]["passes"] > 0
        histories.append(found.history)
        accuracies.append(found.accuracy)
    for shorter, longer in pairwise(histories):
        assert longer[: len(shorter)] == shorter and len(longer) > len(shorter)
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.usefixtures("short_ensemble")
def test_the_seed_decides_everything(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.02)
    first, again, other = (Ensemble()(crossbar, small_batches, seed=s, progress=False) for s in (0, 0, 1))
    assert first.history == again.history != other.history
    assert all(torch.equal(d, again.perturbation[name]) for name, d in first.perturbation.items())


def test_it_leaves_a_chip_that_gives_one_answer():
    """There is a chip that is always wrong, and several attacks end with everything in one class of five."""
    torch.manual_seed(0)
    labels = torch.arange(5).repeat(80)
    images = 3 * torch.eye(5)[labels] + 0.5 * torch.randn(400, 5)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 5))
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        adam.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        adam.step()
    crossbar, batches = Crossbar(net, 0.35), [(images, labels)]
    assert FLWC(objective="into_class:1")(crossbar, batches, progress=False).accuracy >= 0.2
    found = Ensemble()(crossbar, batches, progress=False)
    lowest = {member["member"]: member["lowest"] for member in found.members}
    assert lowest["sigmoid margin"] >= 0.2 and lowest["cross-entropy"] >= 0.2
    assert max(lowest[INTO_ONE_CLASS.name], lowest[TWO_CLASSES.name]) < 0.1
    assert found.accuracy < 0.02


@pytest.mark.usefixtures("short_ensemble")
def test_a_finish_starts_from_chips_that_give_several_answers(small_net, small_batches, monkeypatch):
    """Those of the first round are lower, but give one answer to everything."""
    begun, made, shares = [], [], []
    score, attack = Search.score, _Team.attack

    def scored(run, perturbation, **context):
        score(run, perturbation, **context)
        shares.append(run.one_answer)
        first = context.get("member") in {member.name for member in MEMBERS}
        run.one_answer = 1.0 if first else 0.9
        return 0.2 if first else 0.3

    def attacked(team, member, start, **classes):
        begun.append((member, [by for by, of in made if of is start]))
        accuracy = attack(team, member, start, **classes)
        made.extend((member, of) for *_, of in team.lowest if all(of is not known for _, known in made))
        return accuracy

    monkeypatch.setattr(Search, "score", scored)
    monkeypatch.setattr(_Team, "attack", attacked)
    Ensemble()(Crossbar(small_net, 0.1), small_batches, progress=False)
    _, best_three = FINISHES[0]
    starts = [by for member, by in begun if member is best_three]
    assert len(starts) == 3 and not any(member in MEMBERS for by in starts for member in by)
    given = torch.cat([small_net.eval()(images).argmax(1) for images, _ in small_batches])
    assert shares[0] == pytest.approx(given.bincount().max().item() / len(given))


@pytest.mark.usefixtures("short_ensemble")
def test_a_batch_without_a_decision_is_no_obstacle():
    """All of its pixels have the label that is ignored."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 2, 5)
    labels = torch.randint(3, (4, 2, 5))
    batches = [(images, torch.full_like(labels, 255)), (images, labels)]
    found = Ensemble()(Crossbar(nn.Conv2d(1, 3, 1), 0.2), batches, progress=False)
    assert (found.decisions, found.samples) == (40, 8)


def test_a_start_keeps_a_chip_nearly_and_in_the_box():
    """In a box that is not symmetric, and in which some weights do not deviate."""
    box = Crossbar(nn.Linear(40, 30), 0.1).box
    high = {name: end * (torch.arange(40) % 3) / 4 for name, end in box.high.items()}
    box = Box(box.low, high, box.weights)
    for chip in (box.zero(), box.sample("vertex"), box.sample("uniform")):
        again = Start(box, chip).perturbation(box)
        assert box.contains(again)
        for name, d in chip.items():
            assert torch.allclose(again[name], d, atol=-float(box.low[name].min()) / 250)


def test_a_small_budget_is_spent_on_attacks_and_never_exceeded():
    """Of 40 classes the choice of one to push everything into would take 25 passes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 40))
    images = torch.randn(500, 20)
    labels = net(images).argmax(1)
    for sizes in ([100] * 5, [300, 60, 60, 60, 20]):
        loader = list(zip(images.split(sizes), labels.split(sizes), strict=True))
        for budget in (10, 20, 45.5):
            found = Ensemble(budget=budget)(Crossbar(net, 0.2), loader, progress=False)
            assert found.passes <= budget and found.accuracy < 0.5
    with pytest.raises(ValueError, match=r"^budget=1: the first member needs \d+ passes here$"):
        Ensemble(budget=1)(Crossbar(net, 0.2), loader, progress=False)


def test_a_budget_that_is_too_small_is_told_before_other_attacks(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    with pytest.raises(ValueError, match=r"^budget=(\d): the first member needs \d+ passes here$") as refused:
        Ensemble(budget=3).check_fit(crossbar, small_batches)
    least = int(str(refused.value).split()[-3])
    Ensemble(budget=least).check_fit(crossbar, small_batches)
    Ensemble(budget=least)(crossbar, small_batches, progress=False)
    with pytest.raises(ValueError, match=f"needs {least} passes"):
        evaluate(crossbar, small_batches, [Never(), Ensemble(budget=3)])


def test_a_budget_that_is_too_small_for_a_half_is_told_before_other_attacks():
    net, x = nn.Linear(20, 4), torch.randn(1000, 20)
    batches = [(part, net(part).argmax(1)) for part in x.split(500)]
    crossbar, attack = Crossbar(net, 0.05), Ensemble(budget=3.5)
    attack.check_fit(crossbar, batches)
    with pytest.raises(ValueError, match="the first member needs 5 passes here"):
        evaluate(crossbar, batches, [Never(), attack], heldout=True, progress=False)


class Never(FLWC):
    name = "never"

    def search(self, run):
        pytest.fail("it was run before the settings of the next were looked at")


@pytest.mark.usefixtures("short_ensemble")
def test_large_batches_cost_no_more(small_net):
    images = torch.randn(1024, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    crossbar = Crossbar(small_net, 0.02)
    labels = crossbar.eval()(images).argmax(1)
    passes = [
        Ensemble(rounds=1)(
            crossbar, list(zip(images.split(n), labels.split(n), strict=True)), progress=False
        ).passes
        for n in (128, 1024)
    ]
    assert passes[0] == pytest.approx(passes[1], rel=0.01)


@pytest.mark.parametrize(("classes", "samples", "batch"), [(12, 1000, 100), (10, 560, 10)])
def test_a_start_costs_one_pass_and_no_member(classes, samples, batch, monkeypatch):
    monkeypatch.setattr(Ensemble, "share_of_steps", 0.1)
    torch.manual_seed(0)
    net, images = nn.Linear(20, classes), torch.randn(samples, 20)
    labels = net(images).argmax(1)
    crossbar = Crossbar(net, 0.001)
    batches = list(zip(images.split(batch), labels.split(batch), strict=True))
    alone = Ensemble()(crossbar, batches, progress=False)
    started = Ensemble()(crossbar, batches, start=crossbar.box.zero(), progress=False)
    assert alone.members[-1]["member"] == "finish of the best two" and alone.accuracy > 0
    assert started.passes == pytest.approx(alone.passes + 1)


def test_a_step_sees_samples_from_all_over_data_that_is_sorted_by_class(small_net):
    labels = torch.arange(3).repeat_interleave(32)
    images = labels.view(-1, 1, 1, 1) + torch.zeros(96, 1, 6, 6)
    seen, crossbar = [], Crossbar(small_net, 0.1)
    crossbar(images)  # whose first batch is looked at
    small_net[0].register_forward_hook(
        lambda module, inputs, out: seen.append(inputs[0][:, 0, 0, 0].tolist()) if out.requires_grad else None
    )
    batches = list(zip(images.split(16), labels.split(16), strict=True))
    Ensemble(rounds=1)(crossbar, batches, progress=False)
    steps = [batch for batch in seen if len(batch) == 16]
    assert len(steps) == len(seen) >= 32 and all(len(set(batch)) > 1 for batch in steps)


@pytest.mark.parametrize("attack", [FLWC(steps=2), LWC(epochs=2), PGD(steps=2), Ensemble(rounds=1, budget=20)])
@pytest.mark.parametrize("in_order", [True, False])
def test_an_attack_whose_steps_see_few_classes_says_so(attack, in_order, small_net, monkeypatch):
    """The buffer holds a third of the images, as of a large set; PGD steps after whole passes."""
    monkeypatch.setattr(mini_batches, "BUFFER", 32 * 36 * 4)
    order = torch.arange(96) if in_order else torch.randperm(96, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3).repeat_interleave(32)[order]
    images = torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    result = evaluate(Crossbar(small_net, 0.1), [*zip(images.split(16), labels.split(16), strict=True)], attack)
    told = any("its steps saw few classes each" in flag for flag in result.flags)
    assert told == (in_order and not isinstance(attack, PGD))


@pytest.mark.parametrize("part", [lambda whole: whole, lambda whole: Half(whole, 0)])
def test_workers_that_persist_serve_the_mini_batches_too(part, small_net, monkeypatch):
    monkeypatch.setattr(mini_batches, "BUFFER", 16 * 36 * 4)
    images, labels = torch.randn(64, 1, 6, 6), torch.arange(64) % 3
    data = TensorDataset(images, labels)
    crossbar, attack = Crossbar(small_net, 0.1), Ensemble(budget=20)
    plain, persistent = (
        attack(crossbar, part(DataLoader(data, 8, **workers)), progress=False)
        for workers in ({}, {"num_workers": 1, "persistent_workers": True})
    )
    assert plain.history == persistent.history


def test_batches_with_their_own_scale_are_not_joined():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x, scale):
            if torch.is_grad_enabled():
                seen.add(scale.item())
            return self.linear(x * scale)

    batches = [
        ({"x": torch.randn(10, 5), "scale": torch.tensor(s)}, torch.arange(10) % 3) for s in (1.0, 2.0, 4.0)
    ]
    crossbar, seen = Crossbar(Scaled(), 0.1), set()
    Ensemble(budget=20)(crossbar, batches, progress=False)
    assert seen == {1.0, 2.0, 4.0}


@pytest.mark.usefixtures("short_ensemble")
def test_every_step_is_of_a_whole_mini_batch(small_net):
    """The user's batches of 129 become pieces of 64 and 65, never 128 and 1."""
    images = torch.randn(258, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    crossbar = Crossbar(small_net, 0.001)
    batches = list(zip(images.split(129), crossbar.eval()(images).argmax(1).split(129), strict=True))
    sizes = []
    small_net[0].register_forward_hook(
        lambda module, inputs, out: sizes.append(len(out)) if out.requires_grad else None
    )
    Ensemble()(crossbar, batches, progress=False)
    assert min(sizes) >= 64 and max(sizes) <= 128


@pytest.mark.usefixtures("short_ensemble")
def test_two_classes_need_no_third(small_batches):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    batches = [(images, labels % 2) for images, labels in small_batches]
    found = Ensemble(rounds=1)(Crossbar(net, 0.1), batches, progress=False)
    assert found.accuracy < found.clean_accuracy


@pytest.mark.usefixtures("short_ensemble")
def test_a_thousand_classes():
    torch.manual_seed(0)
    images = torch.randn(64, 8)
    net = nn.Linear(8, 1000)
    found = Ensemble(rounds=1)(Crossbar(net, 0.1), [(images, net(images).argmax(1))], progress=False)
    assert found.clean_accuracy == 1.0 and found.accuracy < 0.1 and found.feasible


@pytest.mark.parametrize("options", [{"rounds": 0}, {"budget": 0.5}, {"budget": float("nan")}])
def test_settings_out_of_range(options):
    with pytest.raises(ValueError, match="must be 1 or more"):
        Ensemble(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 1.5}, r"rounds=1\.5: must be a whole number, 1 or more"),
        ({"rounds": True}, "rounds=True: must be a whole number, 1 or more"),
        ({"budget": "5"}, "budget='5': must be a number, 1 or more and finite, in passes"),
        ({"budget": 10**400}, r"budget=1.*0: must be 1 or more and finite, in passes over the reference set"),
    ],
)
def test_settings_of_another_kind(options, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(**options)
