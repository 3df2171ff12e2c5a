"""Boxes of devices by hand: what a tolerance and a mapping come to."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from worstcase import Crossbar, DeviceMapping, Tolerance
from worstcase.chip.write_verify import device_weights, perturbation_bound

RISING = Tolerance([0, 0.5, 1], [-0.01, -0.03, -0.07], [0.02, 0.04, 0.04])


def crossbar_of(values, thg, dtype=torch.double, **options):
    layer = nn.Linear(len(values), 1, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([values]))
    return Crossbar(layer, thg, **options)


def ends(crossbar):
    box = crossbar.box
    weight = crossbar.programmed()["weight"]
    return [end["weight"].expand_as(weight)[0].tolist() for end in (box.low, box.high)]


def test_one_device_a_weight_by_hand():
    """The full scale is 2; a negative weight falls where its device rises; 0 may have either sign."""
    low, high = ends(crossbar_of([2.0, 1.0, 0.5, 0.0, -1.5, -2.0], RISING))
    assert low == pytest.approx([-0.14, -0.06, -0.04, -0.04, -0.08, -0.08])
    assert high == pytest.approx([0.08, 0.08, 0.06, 0.04, 0.10, 0.14])


def test_a_differential_pair_by_hand():
    """The unused device is at 0 and deviates by -0.01 to 0.02 there."""
    crossbar = crossbar_of([1.0, -1.0, -0.5, 0.0], RISING, mapping=DeviceMapping(pair=True))
    low, high = ends(crossbar)
    assert low == pytest.approx([-0.07 - 0.02, -(0.04 + 0.01), -(0.04 + 0.01), -0.01 - 0.02])
    assert high == pytest.approx([0.04 + 0.01, 0.07 + 0.02, 0.03 + 0.02, 0.02 + 0.01])
    assert crossbar.thg == pytest.approx(0.09)
    flat = crossbar_of([1.0, -0.5, 0.0], 0.03, mapping=DeviceMapping(pair=True))
    assert flat.thg == pytest.approx(0.06) and ends(flat)[1] == pytest.approx([0.06] * 3)


def test_a_conductance_is_cut_off_at_0_and_at_its_largest():
    low, high = ends(crossbar_of([1.0, 0.01, -0.99, 0.0], 0.03, mapping=DeviceMapping(cut_off=True)))
    assert low == pytest.approx([-0.03, -0.01, -0.01, -0.03])
    assert high == pytest.approx([0.0, 0.03, 0.03, 0.03])
    low, high = ends(crossbar_of([1.0, 0.01, 0.0, -1.0], 0.03, mapping=DeviceMapping(pair=True, cut_off=True)))
    assert low == pytest.approx([-0.06, -0.04, -0.03, 0.0])  # the unused device can only rise
    assert high == pytest.approx([0.0, 0.03, 0.03, 0.06])


def test_bits_on_devices_by_hand():
    """Of 4 bits on devices of 2: 11 = 3 + 4 x 2, 15 = 3 + 4 x 3; a device's deviation counts in its 3 levels."""
    crossbar = crossbar_of(
        [15.0, 11.0, -4.0, 0.0], RISING, weight_bits=4, mapping=DeviceMapping(device_bits=2, cut_off=True)
    )
    low, high = ends(crossbar)
    at_2_of_3, high_at_1_of_3 = 0.03 + 0.04 / 3, 0.02 + 0.04 / 3
    assert low[:3] == pytest.approx([-3 * 0.07 * 5, -3 * (0.07 + 4 * at_2_of_3), -3 * (0.02 + 4 * high_at_1_of_3)])
    assert high[:2] == pytest.approx([0.0, 3 * 4 * 0.04])
    assert high[2] == pytest.approx(3 * 4 * (0.01 + 0.04 / 3)) and high[3] == pytest.approx(3 * 5 * 0.02)


@pytest.mark.parametrize(("m", "k"), [(4, 1), (4, 2), (4, 4), (8, 2), (8, 4)])
@pytest.mark.parametrize("as_table", [False, True])
def test_a_uniform_tolerance_in_levels_is_eq_4(m, k, as_table):
    th = 0.06
    of_full_scale = th / (2**k - 1)
    said = Tolerance([0, 1], [-of_full_scale] * 2, [of_full_scale] * 2) if as_table else of_full_scale
    crossbar = crossbar_of([1.0, -0.37, 0.2, 0.0], said, weight_bits=m, mapping=DeviceMapping(device_bits=k))
    low, high = ends(crossbar)
    assert high == pytest.approx([perturbation_bound(th, m, k)] * 4) and low == pytest.approx([-h for h in high])
    assert crossbar.thg == pytest.approx(perturbation_bound(th, m, k))


def test_the_sigma_of_a_weight_is_that_of_devices_that_deviate_independently():
    table = Tolerance.of_sigma([0, 1], [0.01, 0.03], sigmas=2)
    (one,) = crossbar_of([2.0, -1.0, 0.0], table).sigma().values()
    assert one[0].tolist() == pytest.approx([0.06, 0.04, 0.02])
    (pair,) = crossbar_of([2.0, -1.0], table, mapping=DeviceMapping(pair=True)).sigma().values()
    assert pair[0].tolist() == pytest.approx([2 * math.hypot(0.03, 0.01), 2 * math.hypot(0.02, 0.01)])
    bits = {"weight_bits": 4, "mapping": DeviceMapping(device_bits=2)}
    (of_bits,) = crossbar_of([15.0], table, **bits).sigma().values()
    assert of_bits.item() == pytest.approx(3 * 0.03 * math.hypot(*device_weights(4, 2)))
    (flat,) = crossbar_of([2.0, -1.0], 0.05).sigma().values()
    assert flat.item() == pytest.approx(0.1)
    (lopsided,) = crossbar_of([1.0, 0.0], RISING).sigma().values()
    assert lopsided[0].tolist() == pytest.approx([0.055, 0.015])  # half the width


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "mapping",
    [
        DeviceMapping(),
        DeviceMapping(pair=True),
        DeviceMapping(device_bits=2),
        DeviceMapping(pair=True, device_bits=2, cut_off=True),
    ],
)
def test_ends_are_rounded_toward_zero_and_never_above_thg(dtype, mapping):
    torch.manual_seed(0)
    for seed in range(20):
        values = (torch.randn(60) * 1.7).to(dtype)
        crossbar = crossbar_of(
            values.tolist(), RISING.scaled(1 - seed / 20), dtype, mapping=mapping, weight_bits=4
        )
        box, weight = crossbar.box, crossbar.programmed()["weight"].detach().double()
        scale = crossbar.full_scales()["weight"]
        low, high = mapping.ends(weight / scale, crossbar.tolerance, 4)
        for end, exact in ((box.high["weight"], high), (-box.low["weight"], -low)):
            assert end.dtype == dtype and (end >= 0).all()
            assert (end.double() / scale <= exact).all()
            above = torch.nextafter(end, torch.full_like(end, torch.inf)).double() / scale
            assert (above >= exact * (1 - 1e-15)).all()
        assert box.contains(box.zero())
        for corner in (box.low, box.high):
            assert crossbar.max_relative_perturbation(corner) <= crossbar.thg


def test_a_tolerance_by_array_the_first_pattern_counts(small_net):
    crossbar = Crossbar(small_net, {"5*": 0.01, "*": 0.03})
    relative = {name: bound / crossbar.full_scales()[name] for name, bound in crossbar.bound().items()}
    assert {n: r.item() for n, r in relative.items()} == pytest.approx({"0.weight": 0.03, "5.weight": 0.01})
    assert crossbar.thg == 0.03
    assert Crossbar(small_net, {"*": 0.03, "5*": 0.01}).bound() == Crossbar(small_net, 0.03).bound()
    crossbar.thg = {"0.*": RISING, "5*": 0.01}
    assert crossbar.thg == 0.07 and crossbar.box.low["0.weight"].ndim == 4
    assert crossbar.box.low["5.weight"].ndim == 0


@pytest.mark.parametrize(
    ("thg", "message"),
    [
        ({"fc*": 0.1, "*": 0.2}, r"thg: no array is named 'fc\*'; there are 0.weight, 5.weight"),
        ({"0*": 0.1}, r"thg: no pattern fits the array 5.weight; there are 0\*"),
        ({}, r"thg: no pattern fits the array 0.weight"),
        ({"*": 1.5}, r"thg=1.5: must be 0 <= thg <= 1"),
        ({"*": "a"}, r"thg='a': must be a number or a Tolerance"),
        ("rram", r"thg='rram': must be a number or a Tolerance"),
        (None, r"thg=None: must be a number or a Tolerance"),
        (
            "devices.csv",
            r"thg='devices.csv': .*; Tolerance.from_csv\(FILE\) and load_tolerances\(FILE\) read them",
        ),
        ([0.1, 0.2], r"thg=\[0.1, 0.2\]: must be a number or a Tolerance"),
        (torch.full((2, 3), 0.1), "thg: a tensor with a number for each weight needs its array's name"),
        ({"*": torch.empty(0)}, "thg of 0.weight: each number must be .*, one for each weight"),
        ({"*": torch.zeros(4, dtype=torch.long)}, "thg of 0.weight: .*, one for each weight, as floats"),
        ({"*": np.full((4, 4), 0.1)}, r"thg of 0.weight is a ndarray; give torch.as_tensor\(\) of it"),
        (Path("own.safetensors"), r"load_tolerances\(FILE\) read them"),
    ],
)
def test_a_tolerance_that_cannot_be(thg, message, small_net):
    with pytest.raises(ValueError, match=message) as told:
        Crossbar(small_net, thg)
    assert "\n" not in str(told.value)
    crossbar = Crossbar(small_net, 0.1)
    with pytest.raises(ValueError, match=message):
        crossbar.thg = thg
    assert crossbar.thg == 0.1 and crossbar.tolerance == 0.1


def test_a_table_that_cannot_be_scaled_so_far():
    crossbar = crossbar_of([1.0], Tolerance([0, 1], [-0.01, -0.1], [0, 0.1]), mapping=DeviceMapping(pair=True))
    with crossbar.bounded_by(1.0):
        assert crossbar.thg == 1.0
    with pytest.raises(ValueError, match=r"thg=1\.5: must be at most 1\.1, at which a device deviates by its"):
        crossbar.bounded_by(1.5).__enter__()


def test_a_mapping_that_cannot_be():
    for options in ({}, {"weight_bits": 4, "full_scale": "unit"}):
        with pytest.raises(
            ValueError, match="device_bits=2: needs weight_bits, which it divides, and full_scale="
        ):
            crossbar_of([1.0], 0.1, mapping=DeviceMapping(device_bits=2), **options)
    with pytest.raises(ValueError, match="weight_bits=4 is not divisible by device_bits=3"):
        crossbar_of([1.0], 0.1, mapping=DeviceMapping(device_bits=3), weight_bits=4)
    with pytest.raises(ValueError, match="device_bits=0: must be a whole number"):
        DeviceMapping(device_bits=0)
    with pytest.raises(ValueError, match="pair='no': must be True or False"):
        DeviceMapping(pair="no")
    with pytest.raises(ValueError, match="mapping=True: must be a DeviceMapping"):
        crossbar_of([1.0], 0.1, mapping=True)
    crossbar = crossbar_of([1.0, 2.0], RISING, full_scale="unit")
    with pytest.raises(
        ValueError, match="weight: a weight is above 1, the largest conductance of full_scale=unit"
    ):
        crossbar.box  # noqa: B018
    assert ends(crossbar_of([1.0, 0.5], RISING, full_scale="unit"))[0] == pytest.approx([-0.07, -0.03])


def test_another_largest_deviation_scales_all_tolerances():
    crossbar = crossbar_of([2.0, -0.3, 0.0], RISING, mapping=DeviceMapping(pair=True))
    whole, thg = crossbar.box, crossbar.thg
    with crossbar.bounded_by(thg / 4):
        assert crossbar.thg == pytest.approx(thg / 4) and crossbar.box.is_part_of(whole)
        assert torch.allclose(crossbar.box.low["weight"], whole.low["weight"] / 4)
    assert crossbar.tolerance is RISING
    layered = crossbar_of([1.0], {"*": 0.1})
    with layered.bounded_by(0.05):
        assert layered.tolerance == {"*": 0.05}
    exact = crossbar_of([1.0], Tolerance([0, 1], [0, 0], [0, 0]))
    with pytest.raises(ValueError, match="a tolerance of 0 at all conductances"), exact.bounded_by(0.1):
        pass


def test_one_number_and_one_device_are_the_box_that_they_were(small_net):
    plain, mapped = Crossbar(small_net, 0.03), Crossbar(small_net, 0.03, mapping=DeviceMapping())
    assert plain.has_one_bound and mapped.has_one_bound
    for box in (mapped.box, Crossbar(small_net, {"*": 0.03}).box):
        for name, high in plain.box.high.items():
            assert torch.equal(high, box.high[name]) and torch.equal(-high, box.low[name]) and high.ndim == 0


def test_a_layer_of_zeros_does_not_deviate():
    box = crossbar_of([0.0, 0.0], RISING, mapping=DeviceMapping(pair=True)).box
    assert not box.movable and not box.high["weight"].isnan().any()


def test_weights_that_may_be_stuck_by_hand():
    """Of a full scale of 2: one may be at 0, one at its largest with its sign turned, the others are sound."""
    stuck = torch.tensor([[torch.nan, 0.0, 1.0, torch.nan]])
    crossbar = crossbar_of([2.0, 1.0, -1.0, -0.5], 0.03, stuck={"weight": stuck})
    low, high = ends(crossbar)
    assert low == pytest.approx([-0.06, -1.0, -0.06, -0.06]) and high == pytest.approx([0.06, 0.06, 3.0, 0.06])
    assert crossbar.thg == 2 and not crossbar.has_one_bound and crossbar.box.contains(crossbar.box.zero())
    with (
        pytest.raises(ValueError, match="where weights may be stuck, tolerances are not"),
        crossbar.bounded_by(0.5),
    ):
        pass
    crossbar.thg = 0.0
    assert ends(crossbar)[1] == pytest.approx([0, 0, 3.0, 0])
    rising = crossbar_of([2.0, 1.0, -1.0, -0.5], RISING, stuck={"weight": stuck}, mapping=DeviceMapping(pair=True))
    assert ends(rising)[0][1] == pytest.approx(-1.0) and ends(rising)[1][2] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("stuck", "message"),
    [
        ({"w": torch.zeros(1, 2)}, "stuck: no array is named 'w'; there are weight"),
        ({"weight": 0.0}, "stuck: weight must have a tensor of the weight's shape"),
        ({"weight": torch.zeros(2)}, r"stuck: weight has the shape \(1, 2\), not \(2,\)"),
        ({"weight": torch.full((1, 2), 1.5)}, r"stuck: values of weight must be -1\.\.1"),
        ({"weight": torch.full((1, 2), torch.inf)}, r"stuck: values of weight must be -1\.\.1"),
    ],
)
def test_weights_that_cannot_be_stuck(stuck, message):
    with pytest.raises(ValueError, match=message):
        crossbar_of([1.0, 2.0], 0.1, stuck=stuck)


def test_a_number_is_the_standard_deviation_of_each_device_however_it_is_said():
    mapping, weight = DeviceMapping(device_bits=2), [2.0, -1.0, 0.5]
    of_weight = 0.06 * math.hypot(*device_weights(4, 2)) / sum(device_weights(4, 2))
    for thg in (0.03, {"*": 0.03}, {"*": torch.full((1, 3), 0.03)}, Tolerance([0, 1], [-0.03] * 2, [0.03] * 2)):
        (sigma,) = crossbar_of(weight, thg, mapping=mapping, weight_bits=4).sigma().values()
        assert sigma.expand(1, 3).tolist() == [pytest.approx([of_weight] * 3)]
        (one,) = crossbar_of(weight, thg).sigma().values()
        assert one.expand(1, 3).tolist() == [pytest.approx([0.06] * 3)]
