"""Samplers against their closed moments, and the box."""

import math
from functools import partial

import pytest
import torch

from worstcase import Crossbar, DeviceMapping, Tolerance
from worstcase.chip.box import Box
from worstcase.chip.noise import (
    each_device,
    gaussian,
    per_device,
    programmed,
    right_censored_gaussian,
    verified,
    verified_devices,
)

SAMPLES = 200_000
SCALE = 0.2


def density(x):
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def distribution(x):
    return (1 + math.erf(x / math.sqrt(2))) / 2


def truncated_variance(t):
    z = 2 * distribution(t) - 1
    return (1 - 2 * t * density(t) / z) / t**2


CENSORED_MEAN = 0.7 * (1 - distribution(0.7)) - density(0.7)
CENSORED_SQUARE = distribution(0.7) - 0.7 * density(0.7) + 0.49 * (1 - distribution(0.7))


def of_scale(sampler, **options):
    """For a weight, what draws its deviation; the scale is the sampler's sigma."""
    return lambda w: partial(sampler, {"w": w}, {"w": torch.tensor(SCALE, dtype=w.dtype)}, **options)


def of_box(sampler, **options):
    """The same; the scale is the end of the box."""
    ones = {"w": torch.ones((), dtype=torch.double)}
    return lambda w: partial(sampler, Box.symmetric(SCALE, ones, {"w": w}), **options)


def sample(kind, **options):
    return of_box(lambda box, generator: box.sample(kind, generator, **options))


# sampler, mean and variance in units of the scale
SAMPLERS = {
    "gaussian": (of_scale(gaussian), 0.0, 1.0),
    "truncated": (sample("truncated_gaussian", tolerance=0.6), 0.0, truncated_variance(0.6)),
    "censored": (
        of_scale(right_censored_gaussian, threshold=0.7),
        CENSORED_MEAN,
        CENSORED_SQUARE - CENSORED_MEAN**2,
    ),
    "uniform": (sample("uniform"), 0.0, 1 / 3),
    "vertex": (sample("vertex"), 0.0, 1.0),
    "programmed": (of_box(programmed, tolerance=0.6), 0.0, truncated_variance(0.6)),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def draw(sampler, shape=(SAMPLES,), dtype=torch.float32, seed=0, bits=None):
    of_a_weight = sampler(torch.empty(shape, dtype=dtype))
    if bits:
        of_a_weight = per_device(of_a_weight, *bits)
    return of_a_weight(torch.Generator().manual_seed(seed))["w"]


@every_sampler
@pytest.mark.parametrize("bits", [None, (4, 2), (8, 1)])
def test_moments(name, bits):
    sampler, mean, variance = SAMPLERS[name]
    if bits:
        weights = torch.tensor([2.0 ** (i * bits[1]) for i in range(bits[0] // bits[1])])
        variance *= (weights.square().sum() / weights.sum() ** 2).item()
    sample = draw(sampler, bits=bits).double() / SCALE
    assert sample.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / SAMPLES))
    assert sample.var().item() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("name", ["truncated", "uniform", "vertex", "programmed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [None, (4, 2), (8, 1)])
def test_bounded_samplers_never_leave_the_box(name, dtype, bits):
    for seed in range(5):
        assert draw(SAMPLERS[name][0], dtype=dtype, seed=seed, bits=bits).abs().max() <= torch.tensor(
            SCALE, dtype=dtype
        )


@every_sampler
def test_shape_dtype_and_generator(name):
    sampler = SAMPLERS[name][0]
    sample = draw(sampler, shape=(3, 4), dtype=torch.float64)
    assert sample.shape == (3, 4) and sample.dtype == torch.float64
    assert torch.equal(sample, draw(sampler, shape=(3, 4), dtype=torch.float64))
    assert not torch.equal(sample, draw(sampler, shape=(3, 4), dtype=torch.float64, seed=1))


def test_right_censored_gaussian_follows_eq_11():
    noise = draw(SAMPLERS["censored"][0])
    cut = 0.7 * torch.tensor(SCALE)
    above = 1 - distribution(0.7)
    assert noise.max() == cut
    assert abs((noise == cut).double().mean().item() - above) < 4 * math.sqrt(above / SAMPLES)
    below = noise[noise < 0].double()  # the left half is a plain Gaussian's
    assert below.square().mean().sqrt().item() / SCALE == pytest.approx(1, abs=0.01)


def test_devices_that_fail_to_verify_leave_the_box():
    assert draw(of_box(programmed, tolerance=0.05, max_pulses=2)).abs().max() > SCALE


@pytest.mark.parametrize(
    "sampler", [sample("truncated_gaussian", tolerance=0.0), of_box(programmed, tolerance=0.0)]
)
def test_tolerance_out_of_range(sampler):
    with pytest.raises(ValueError, match=r"tolerance=0\.0: must be above 0"):
        draw(sampler)


LOW, HIGH = torch.tensor([-0.3, -0.05, 0.0]), torch.tensor([0.1, 0.4, 0.2])
LOPSIDED = Box({"w": LOW.expand(SAMPLES, 3)}, {"w": HIGH.expand(SAMPLES, 3)}, {"w": torch.empty(SAMPLES, 3)})
OF_EACH = {"w": torch.tensor([0.2, 0.1, 0.3])}


def test_verified_is_a_gaussian_given_that_it_is_inside():
    """The moments of a Gaussian truncated at unequal ends, with the same sigma to both sides."""
    sample = verified(LOPSIDED, OF_EACH, torch.Generator().manual_seed(0))["w"].double()
    assert LOPSIDED.contains({"w": sample.float()})
    for column, sigma, low, high in zip(sample.T, OF_EACH["w"].tolist(), LOW.tolist(), HIGH.tolist(), strict=True):
        a, b = low / sigma, high / sigma
        z = distribution(b) - distribution(a)
        mean = (density(a) - density(b)) / z
        variance = 1 + (a * density(a) - b * density(b)) / z - mean**2
        assert column.mean().item() / sigma == pytest.approx(mean, abs=4 * math.sqrt(variance / SAMPLES))
        assert column.var().item() / sigma**2 == pytest.approx(variance, rel=0.02)


def test_devices_that_are_not_verified_in_time_follow_the_gaussian_outside():
    generator = torch.Generator().manual_seed(0)
    whole = verified(LOPSIDED, OF_EACH, generator, max_pulses=1)["w"].double()
    for column, sigma, low, high in zip(whole.T, OF_EACH["w"].tolist(), LOW.tolist(), HIGH.tolist(), strict=True):
        assert column.mean().item() / sigma == pytest.approx(
            0, abs=4 / math.sqrt(SAMPLES)
        )  # one pulse: N(0, sigma)
        assert column.std().item() / sigma == pytest.approx(1, rel=0.01)
        outside = 1 - distribution(high / sigma) + distribution(low / sigma)
        drawn = verified(LOPSIDED, OF_EACH, generator, max_pulses=3)["w"]
        column = drawn[:, OF_EACH["w"].tolist().index(sigma)]
        share = ((column < low) | (column > high)).double().mean().item()
        assert share == pytest.approx(outside**3, abs=4 * math.sqrt(outside**3 / SAMPLES))


def test_what_may_not_deviate_needs_no_pulses():
    box = Box.symmetric(0.2, {"w": torch.tensor([0.0, 1.0])}, {"w": torch.empty(1000, 2)})
    sample = verified(box, {"w": torch.tensor(0.5)}, torch.Generator().manual_seed(0), max_pulses=1)["w"]
    assert not sample[:, 0].any() and not box.contains({"w": sample})


def test_with_equal_ends_and_sigmas_it_is_the_truncated_gaussian_of_the_box():
    box = Box.symmetric(SCALE, {"w": torch.ones((), dtype=torch.double)}, {"w": torch.empty(SAMPLES)})
    sample = verified(box, {"w": torch.tensor(SCALE / 0.6)}, torch.Generator().manual_seed(0))["w"].double()
    assert sample.var().item() / SCALE**2 == pytest.approx(truncated_variance(0.6), rel=0.02)
    exact = Box.symmetric(0.0, {"w": torch.ones((), dtype=torch.double)}, {"w": torch.empty(9)})
    for sigma in (0.0, 0.1):
        assert not verified(exact, {"w": torch.tensor(sigma)})["w"].any()


def truncated_moments(sigma, low, high):
    """The mean and the variance of N(0, sigma) given that it is in low..high."""
    a, b = low / sigma, high / sigma
    z = distribution(b) - distribution(a)
    mean = (density(a) - density(b)) / z
    return sigma * mean, sigma**2 * (1 + (a * density(a) - b * density(b)) / z - mean**2)


def programmed_devices(crossbar, box=None, seed=0, sigma=None, **options):
    draw = verified_devices(crossbar, box or crossbar.box, sigma, **options)
    return draw(torch.Generator().manual_seed(seed))


def layer_of(weights):
    layer = torch.nn.Linear(weights.shape[1], len(weights), bias=False)
    layer.weight.data = weights
    return layer


LAYER = torch.tensor([[0.75, -0.25, 1.0]])
RISING = Tolerance([0, 1], [0.0, -0.2], [0.1, 0.3], sigma=[0.1, 0.2])


def devices_of(weight, **options):
    """What each device of a weight adds, by hand: its sigma, and the least and the greatest deviation."""
    of_weight = [(0.1 + 0.1 * abs(weight), -0.2 * abs(weight), 0.1 + 0.2 * abs(weight))]
    unused = [(0.1, -0.1, 0.0)] if options.get("pair") else []
    turned = -1 if weight < 0 else 1
    return [(s, *sorted((turned * low, turned * high))) for s, low, high in of_weight + unused]


@pytest.mark.parametrize("pair", [False, True])
def test_each_device_is_verified_by_itself(pair):
    """Means and variances of independent devices add up."""
    crossbar = Crossbar(layer_of(LAYER.repeat(SAMPLES // 3, 1)), RISING, mapping=DeviceMapping(pair=pair))
    sample = programmed_devices(crossbar)
    assert crossbar.box.contains(sample)
    for column, weight in zip(sample["weight"].double().T, LAYER[0].tolist(), strict=True):
        moments = [truncated_moments(*device) for device in devices_of(weight, pair=pair)]
        mean, variance = map(sum, zip(*moments, strict=True))
        assert column.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / len(column)))
        assert column.var().item() == pytest.approx(variance, rel=0.03)


def test_a_pair_of_one_number_varies_as_two_devices():
    crossbar = Crossbar(layer_of(-torch.ones(1, SAMPLES)), 0.1, mapping=DeviceMapping(pair=True))
    sample = programmed_devices(crossbar)["weight"].double()
    assert sample.var().item() / 0.1**2 == pytest.approx(2 * truncated_variance(1.0), rel=0.02)
    assert 0.17 < sample.abs().max() <= 0.2


@pytest.mark.parametrize("bits", [None, 2])
def test_devices_have_the_part_of_the_box_that_is_asked_for(bits):
    torch.manual_seed(0)
    mapping = DeviceMapping(pair=True, device_bits=bits, cut_off=True)
    crossbar = Crossbar(torch.nn.Linear(50, 40, bias=False), RISING, mapping=mapping, weight_bits=4)
    share = torch.rand(40, 50).round(decimals=1)
    part = crossbar.box.restricted_to({"weight": share})
    devices = crossbar.devices()
    assert len(devices) == (2 if bits is None else 4)
    for seed in range(5):
        sample = programmed_devices(crossbar, part, seed)
        assert part.contains(sample) and sample["weight"].any() and not sample["weight"][share == 0].any()


def test_devices_that_are_not_verified_in_time_take_the_weight_out_of_its_box():
    crossbar = Crossbar(layer_of(torch.ones(1, SAMPLES)), 0.1, mapping=DeviceMapping(pair=True))
    sample = programmed_devices(crossbar, sigma=0.2, max_pulses=1)["weight"].double()
    assert sample.std().item() == pytest.approx(0.2 * math.sqrt(2), rel=0.01)  # nothing was verified


def test_devices_are_sound_where_they_may_be_stuck():
    crossbar = Crossbar(layer_of(LAYER.clone()), 0.1, stuck={"weight": torch.zeros(1, 3)})
    assert crossbar.box.low["weight"][0, 2] == -1
    sample = each_device(crossbar, crossbar.box, lambda box, _: partial(box.sample, "vertex"))(None)
    assert sample["weight"].abs().flatten().tolist() == pytest.approx([0.1] * 3)
