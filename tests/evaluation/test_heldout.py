import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.attacks import FLWC, Ensemble
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.heldout import Half, attack_one_half


def test_the_halves_are_disjoint_and_together_the_whole():
    batches = [(torch.arange(5), torch.arange(5)), (torch.tensor([5]), torch.tensor([5]))]
    first, second = ([x for images, _ in Half(batches, i) for x in images.tolist()] for i in (0, 1))
    assert sorted(first + second) == list(range(6)) and not set(first) & set(second)
    one_by_one = [(torch.tensor([i]), torch.tensor([i])) for i in range(4)]
    assert [images.tolist() for images, _ in Half(one_by_one, 1)] == [[1], [3]]


def test_the_held_out_half_is_not_attacked():
    """The two halves use different weights, so the attack changes only those of its own half."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    images = torch.eye(2).repeat(10, 1)  # even samples see the first column of W, odd ones the second
    batches = [(images, torch.zeros(20, dtype=torch.long))]
    assert attack_one_half(FLWC(), Crossbar(net, 0.6), batches, progress=False) == (0.0, 1.0)


@pytest.mark.usefixtures("short_ensemble")
def test_attack_and_score_of_the_halves_can_be_repeated_by_hand(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    halves = attack_one_half(Ensemble(rounds=1), crossbar, small_batches, progress=False)
    found = Ensemble(rounds=1)(crossbar, Half(small_batches, 0), progress=False)
    assert halves == (found.accuracy, accuracy(crossbar, Half(small_batches, 1), found.perturbation))
    assert found.accuracy == accuracy(crossbar, Half(small_batches, 0), found.perturbation)
