import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.attacks import FLWC, Ensemble
from worstcase.attacks.half import Half
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.heldout import attack_one_half


def numbers_in(half):
    return [x for images, _ in half for x in images.tolist()]


@pytest.mark.parametrize("samples", [1, 2, 6, 401])
def test_the_halves_are_disjoint_and_together_the_whole(samples):
    whole = torch.arange(samples)
    halves = [
        [numbers_in(Half([(x, x) for x in whole.split(size)], which)) for which in (0, 1)]
        for size in (samples, 5, 1, 1)
    ]
    assert all(found == halves[0] for found in halves)
    first, second = halves[0]
    assert sorted(first + second) == whole.tolist() and abs(len(first) - len(second)) <= 1


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 16])
def test_classes_that_alternate_are_in_both_halves(classes):
    labels = torch.arange(1000) % classes
    for which in (0, 1):
        ((_, found),) = Half([(labels, labels)], which)
        assert (found.bincount(minlength=classes) / 500 - 1 / classes).abs().max() < 0.3 / classes


def test_the_held_out_half_is_not_attacked():
    """The two halves use different weights, so the attack changes only those of its own half."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    whole = torch.arange(20)
    images = torch.eye(2)[torch.isin(whole, torch.tensor(numbers_in(Half([(whole, whole)], 0)))).long()]
    batches = [(images, torch.zeros(20, dtype=torch.long))]
    assert attack_one_half(FLWC(), Crossbar(net, 0.6), batches, progress=False) == (0.0, 1.0)


def test_labels_are_one_hot_only_if_all_are():
    labels = torch.eye(3)[torch.arange(40) % 3]
    net, x = nn.Linear(6, 3), torch.randn(40, 6)
    with pytest.raises(ValueError, match="the labels are one-hot"):
        attack_one_half(FLWC(), Crossbar(net, 0.1), [(x, labels)], progress=False)
    for sample in (0, 1):
        several = labels.clone()
        several[sample] = 1
        attack_one_half(FLWC(), Crossbar(net, 0.1), [(x, several)], progress=False)


@pytest.mark.usefixtures("short_ensemble")
def test_attack_and_score_of_the_halves_can_be_repeated_by_hand(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    halves = attack_one_half(Ensemble(rounds=1), crossbar, small_batches, progress=False)
    found = Ensemble(rounds=1)(crossbar, Half(small_batches, 0), progress=False)
    assert halves == (found.accuracy, accuracy(crossbar, Half(small_batches, 1), found.perturbation))
    assert found.accuracy == accuracy(crossbar, Half(small_batches, 0), found.perturbation)
