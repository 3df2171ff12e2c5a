"""The th_g that is proven and the one that breaks, where both are known."""

import pytest
import torch
from torch import nn

from worstcase import Crossbar, DeviceMapping, Tolerance, attacks, tolerance
from worstcase.verify.cost import Programming
from worstcase.verify.figure import answer_over_thg

EXACT = attacks.FLWC(steps=10)
"""Of a linear layer whose images all push the same way it finds the worst vertex."""


def linear(images, thg=0.1):
    """A linear layer: an image (a, b) is right as long as a - b > 2 th_g (a + b)."""
    crossbar = Crossbar(nn.Linear(2, 2, bias=False), thg)
    with torch.no_grad():
        crossbar.net.weight.copy_(torch.eye(2))
    return crossbar, [(torch.tensor(images), torch.zeros(len(images), dtype=torch.long))]


def test_both_ends_of_a_layer_whose_worst_chip_is_known():
    """All images fail on one chip, one after another: at (a - b) / (2 (a + b))."""
    images = [[1.0, 1.0 - share] for share in (0.1, 0.2, 0.4, 0.8)]
    ends = [(a - b) / (2 * (a + b)) for a, b in images]
    for right, end in ((1.0, ends[0]), (0.75, ends[1]), (0.5, ends[2]), (0.25, ends[3])):
        found = tolerance(*linear(images), right, attack=EXACT, precision=0.01, progress=False)
        assert found.proven_thg <= end <= found.broken_thg
        assert found.proven_thg == pytest.approx(end, rel=0.011)
        assert found.broken_thg == pytest.approx(end, rel=0.011)


@pytest.mark.parametrize("first", [0.0001, 0.9])
def test_it_does_not_matter_where_the_search_begins(first):
    found = tolerance(*linear([[2.0, 1.0]], first), 1.0, attack=EXACT, precision=0.01, progress=False)
    assert found.proven_thg <= 1 / 6 <= found.broken_thg <= 1.02 * found.proven_thg


def test_the_chip_that_breaks_is_in_its_box_and_does(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    clean = attacks.FLWC(steps=1)(crossbar, small_batches, progress=False).clean_accuracy
    found = tolerance(crossbar, small_batches, 0.7 * clean, attack=attacks.FLWC(steps=3), progress=False)
    assert crossbar.thg == 0.05
    with crossbar.bounded_by(found.broken_thg):
        assert crossbar.box.contains(found.broken_chip)
    again = attacks.passes.accuracy(crossbar, small_batches, found.broken_chip)
    assert again < 0.7 * clean <= found.clean_accuracy
    assert found.proven_thg is None or found.proven_thg < found.broken_thg
    assert [one.thg for one in found.attacks] == sorted(one.thg for one in found.attacks)
    plain = found.plain()
    assert plain["broken_thg"] == found.broken_thg and plain["pulses_per_weight"]["broken"] > 2


@pytest.mark.parametrize("first", [1e-4, torch.full((2, 2), 0.01)])
def test_pulses_are_counted_weight_by_weight(first):
    torch.manual_seed(0)
    crossbar = Crossbar(
        nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3, bias=False)), {"0.weight": first, "*": 0.02}
    )
    images = torch.randn(20, 2)
    data = [(images, crossbar.eval()(images).argmax(1))]
    found = tolerance(crossbar, data, 0.9, attack=EXACT, certificate=None, progress=False)
    there = torch.as_tensor(first).max().item() * found.broken_thg / 0.02
    expected = (4 * Programming().pulses(there) + 6 * Programming().pulses(found.broken_thg)) / 10
    assert found.pulses_per_weight()["broken"] == pytest.approx(expected.item(), rel=1e-4)
    assert f"{expected.item():.3g} pulses a weight" in str(found)


def test_pulses_that_cannot_be_counted_are_not_told(tmp_path):
    crossbar, data = linear([[2.0, 1.0]])
    pair = Crossbar(crossbar.net, 0.6, mapping=DeviceMapping(pair=True))  # the weight deviates by up to 1.2
    found = tolerance(pair, data, 1.0, attack=EXACT, precision=0.01, progress=False)
    assert found.proven_thg <= 1 / 6 <= found.broken_thg <= 1.02 * found.proven_thg
    assert found.pulses_per_weight() == dict.fromkeys(("proven", "broken", "array", "weight"))
    assert "pulses" not in str(found)
    figure = answer_over_thg(found.plain())
    figure.savefig(tmp_path / "tolerance.png")
    words = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert len(words) == 2 and all("pulses not counted" in word for word in words)


@pytest.mark.parametrize("pair", [False, True])
def test_a_table_that_nothing_breaks_is_searched_to_its_end(pair, tmp_path):
    crossbar, data = linear([[0.0, 0.0]])
    table = Tolerance([0, 1], [-0.01, -0.05], [0.01, 0.05])
    crossbar = Crossbar(crossbar.net, table, mapping=DeviceMapping(pair=pair))
    found = tolerance(crossbar, data, 1.0, attack=EXACT, progress=False)
    assert found.broken_thg is None and found.attacks[-1].thg == pytest.approx(1.2 if pair else 1.0)
    answer_over_thg(found.plain()).savefig(tmp_path / "tolerance.png")


def test_a_table_in_weight_units_is_searched_to_its_end():
    crossbar, data = linear([[0.0, 0.0]])
    table = Tolerance([0, 1], [-0.01, -0.05], [0.01, 0.05])
    for thg, end in ((table, 1.0), ({"weight": table}, 1.0), ({"weight": 0.05}, 0.05 * 2**20)):
        crossbar = Crossbar(crossbar.net, thg, full_scale="unit")
        found = tolerance(crossbar, data, 1.0, attack=EXACT, certificate=None, progress=False)
        assert found.broken_thg is None and found.attacks[-1].thg == pytest.approx(end)


@pytest.mark.parametrize("unused", [0.5, Tolerance([0, 1], [-0.5, -0.5], [0.5, 0.5])], ids=["number", "table"])
def test_a_pattern_that_no_array_takes_does_not_end_the_search(unused):
    crossbar, data = linear([[2.0, 1.0]], {"*": 0.01, "w*": unused})
    found = tolerance(crossbar, data, 1.0, attack=EXACT, precision=0.01, progress=False)
    assert found.proven_thg <= 1 / 6 <= found.broken_thg <= 1.02 * found.proven_thg


def test_a_layer_that_is_exact_takes_endless_pulses():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    images = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    data = [(images, net(images).argmax(1))]
    crossbar = Crossbar(net, {"0.weight": 0.0, "*": 0.02})
    found = tolerance(crossbar, data, 0.9, attack=EXACT, certificate=None, where=True, progress=False)
    assert found.broken_thg and found.pulses["broken"] is None and "endless pulses" in found.not_shared


def test_answers_that_saturate_cost_no_answer_where_pulses_are_shared_out():
    crossbar, data = linear([[2.0, 1.9], [2.0, 1.0]], 0.01)
    with torch.no_grad():
        crossbar.net.weight.mul_(3000)
    found = tolerance(crossbar, data, 1.0, attack=EXACT, where=True, progress=False)
    assert found.broken_thg == pytest.approx(0.1 / 7.8, rel=0.06) and not found.shared
    assert "not shared out: by='array': no weight seems to matter" in str(found)


def test_bits_of_a_device_change_no_pulses():
    crossbar, data = linear([[2.0, 1.0]])
    of_bits = Crossbar(crossbar.net, 0.1, weight_bits=4, mapping=DeviceMapping(device_bits=2))
    found = tolerance(of_bits, data, 1.0, attack=EXACT, progress=False)
    assert found.pulses["broken"] == pytest.approx(Programming().pulses(found.broken_thg).item())


def test_where_weights_may_be_stuck_nothing_is_searched():
    crossbar, data = linear([[2.0, 1.0]])
    stuck = {"weight": torch.tensor([[torch.nan, 1.0], [torch.nan, torch.nan]])}
    with pytest.raises(ValueError, match="cannot where weights may be stuck"):
        tolerance(Crossbar(crossbar.net, 0.1, stuck=stuck), data, 1.0, attack=EXACT, progress=False)


def test_what_nothing_breaks_has_no_end():
    """With one image of zeros every chip gives the same answer."""
    crossbar, data = linear([[0.0, 0.0]])
    found = tolerance(crossbar, data, 1.0, attack=EXACT, progress=False)
    assert found.broken_thg is None and "no attack broke it" in str(found)


def test_the_network_must_have_the_accuracy_to_begin_with():
    crossbar, data = linear([[2.0, 1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"accuracy=0\.6: the network as programmed has 0\.5"):
        tolerance(crossbar, data, 0.6, progress=False)
    with pytest.raises(ValueError, match="accuracy"):
        tolerance(crossbar, data, 95, progress=False)


class Unused(attacks.FLWC):
    name = "unused"

    def search(self, run):
        raise AssertionError("the attack ran")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": type("Mine", (Unused,), {"name": "lwc"})()}, "Mine.name='lwc': is another's"),
        ({"precision": 1e-9}, r"precision=1e-09: must be 0\.001 or more"),
        ({"certificate": "crown"}, "certificate='crown': must be interval, linear or None"),
        ({"programming": {"sigma": 0.1}}, "must be a Programming"),
        ({"where": True, "training": iter([])}, "gone through only once"),
        ({"where": True, "training": [(torch.ones(1, 2), torch.tensor([3]))]}, "each label must be 0 to 1"),
    ],
)
def test_bad_settings_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        tolerance(*linear([[2.0, 1.0]]), 1.0, **{"attack": Unused(), "progress": False, **options})


def test_pulses_are_shared_out_where_it_is_asked_for():
    images = [[1.0, 0.1], [2.0, 0.2]]
    options = {"attack": EXACT, "precision": 0.02, "programming": Programming(sigma=1.0), "progress": False}
    found = tolerance(*linear(images), 1.0, where=True, **options)
    pulses = found.pulses_per_weight()
    assert pulses["weight"] < 0.97 * pulses["broken"] and pulses["array"] <= 1.05 * pulses["broken"]
    assert set(found.plain()["tolerances"]) == {"weight"} and "each weight" in str(found)
    assert tolerance(*linear(images), 1.0, **options).not_shared == "it was not asked for"
    on_pairs = Crossbar(nn.Linear(2, 2, bias=False), 0.1, mapping=DeviceMapping(pair=True))
    with torch.no_grad():
        on_pairs.net.weight.copy_(torch.eye(2))
    refused = tolerance(on_pairs, linear(images)[1], 1.0, where=True, **options)
    assert "a digital sign" in refused.not_shared and not refused.shared
    cheap = tolerance(*linear(images), 1.0, where=True, **options | {"programming": Programming(sigma=0.01)})
    assert cheap.not_shared.startswith("about one pulse a device is enough")
