"""Which weights to program again, against all sets of them."""

from itertools import combinations

import pytest
import torch
from torch import nn

from worstcase import Crossbar, Tolerance, reprogram
from worstcase.attacks.passes import accuracy


def linear(thg=1e-6):
    crossbar = Crossbar(nn.Linear(3, 3, bias=False), thg)
    with torch.no_grad():
        crossbar.net.weight.copy_(torch.eye(3))
    return crossbar


@pytest.mark.parametrize("seed", range(5))
def test_no_smaller_set_of_weights_would_do(seed):
    """Of one image's margin between two classes, to which each weight adds its part: all sets are tried."""
    generator = torch.Generator().manual_seed(seed)
    crossbar = Crossbar(nn.Linear(4, 2, bias=False), 1e-6)
    data = [(torch.rand(1, 4, generator=generator), torch.tensor([0]))]
    with torch.no_grad():
        crossbar.net.weight.copy_(torch.tensor([[1.5] * 4, [1.3] * 4]))
    chip = {"weight": 0.6 * torch.randn(2, 4, generator=generator)}
    found = reprogram(crossbar, data, chip, 1.0)
    assert found.accuracy_before == accuracy(crossbar, data, chip)

    def is_right(places):
        again = chip["weight"].flatten().clone()
        again[list(places)] = 0
        return accuracy(crossbar, data, {"weight": again.reshape(2, 4)}) == 1

    least = next(n for n in range(9) if any(map(is_right, combinations(range(8), n))))
    assert found.weights == least and found.accuracy == 1
    mask = found.mask()["weight"].flatten().nonzero().flatten().tolist()
    assert len(mask) == least and is_right(mask)


def test_the_order_of_gain_needs_fewer_weights_than_others(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.01)
    labelled = [(x, crossbar.net.eval()(x).argmax(1).detach()) for x, _ in small_batches]
    scales = {name: full.float() for name, full in crossbar.full_scales().items()}
    needed = dict.fromkeys(("gain", "deviation", "random"), 0)
    for seed in range(4):
        torch.manual_seed(seed)
        chip = {name: 0.2 * scales[name] * torch.randn(w.shape) for name, w in crossbar.programmed().items()}
        for order in needed:
            found = reprogram(crossbar, labelled, chip, 0.9, order=order)
            assert found.accuracy >= 0.9 and sum(int(one.sum()) for one in found.mask().values()) == found.weights
            needed[order] += found.weights
    assert 0 < needed["gain"] < 0.5 * min(needed["deviation"], needed["random"])
    again = reprogram(crossbar, labelled, chip, 0.9, order="random")
    assert again.weights == found.weights and all(
        torch.equal(again.rank[n], rank) for n, rank in found.rank.items()
    )
    weights = {name: w.detach() + chip[name] for name, w in crossbar.programmed().items()}
    assert (
        reprogram(crossbar, labelled, weights, 0.9, chip_holds="weights", order="random").weights == found.weights
    )


def test_a_good_chip_needs_none_and_a_bad_network_has_no_answer():
    crossbar = linear()
    right, both = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    chip = {"weight": torch.full((3, 3), 1e-7)}
    assert reprogram(crossbar, [(right, torch.tensor([0]))], chip, 1.0).weights == 0
    bad = reprogram(crossbar, [(both, torch.tensor([0, 1]))], chip, 0.9)
    assert bad.weights is None and bad.accuracy == 0.5 and bad.mask()["weight"].all()


def test_weights_that_may_be_stuck_are_not_programmed_again():
    crossbar = Crossbar(linear().net, 0.01, stuck={"weight": torch.zeros(3, 3)})
    data = [(torch.ones(1, 3), torch.tensor([0]))]
    with pytest.raises(ValueError, match="weights that may be stuck cannot be programmed again"):
        reprogram(crossbar, data, {"weight": torch.zeros(3, 3)}, 1.0)


def test_the_largest_deviation_is_the_one_farthest_beyond_its_own_end():
    """Of a box from -0.01 to 0.05, -0.04 is farther beyond than 0.05; what may not deviate comes first."""
    table = Tolerance([0, 0.4, 1], [0.0, -0.01, -0.01], [0.0, 0.05, 0.05])
    crossbar = Crossbar(nn.Linear(5, 2, bias=False), table)
    with torch.no_grad():
        crossbar.net.weight.copy_(torch.tensor([[1.0, 0.5, 0.5, 0.0, 0.0], [0.5] * 5]))
    chip = {"weight": torch.zeros(2, 5)}
    chip["weight"][0] = torch.tensor([0.0, 0.05, -0.04, 0.001, -0.002])
    data = [(torch.ones(1, 5), torch.tensor([0]))]
    rank = reprogram(crossbar, data, chip, 1.0, order="deviation").rank["weight"]
    assert rank[0, [3, 4, 2, 1]].tolist() == [0, 1, 2, 3]


def test_weights_without_a_box_are_no_obstacle_in_float16():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).half()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[1].weight.copy_(torch.eye(2))
    crossbar = Crossbar(net, {"0.*": 0.01, "*": 0.0})
    chip = {"0.weight": torch.tensor([[-0.9, 0.3], [0.2, 0.0]]), "1.weight": torch.zeros(2, 2)}
    with torch.inference_mode():
        batches = [(torch.tensor([[1.0, 0.0]]).half(), torch.tensor([0]))]
    for order in ("deviation", "gain"):
        assert reprogram(crossbar, batches, chip, 1.0, order=order).weights == 1


def test_what_is_wrong_is_said():
    crossbar, data = linear(), [(torch.ones(1, 3), torch.tensor([0]))]
    with pytest.raises(ValueError, match="order='best': must be gain, deviation, random"):
        reprogram(crossbar, data, {"weight": torch.zeros(3, 3)}, 1.0, order="best")
    with pytest.raises(ValueError, match="the chip does not fit the network: it has no weight"):
        reprogram(crossbar, data, {}, 1.0)
    with pytest.raises(ValueError, match="accuracy=95"):
        reprogram(crossbar, data, {"weight": torch.zeros(3, 3)}, 95)
    with pytest.raises(ValueError, match="the data can be gone through only once; give a list or a DataLoader"):
        reprogram(crossbar, data, {"weight": -torch.ones(3, 3)}, 1.0, training=iter(data))
    with pytest.raises(ValueError, match="there are no samples to take a gradient of"):
        reprogram(crossbar, data, {"weight": -torch.ones(3, 3)}, 1.0, training=[])
