"""Samplers against their closed moments, and the box."""

import math
from functools import partial

import pytest
import torch

from worstcase.chip.box import Box
from worstcase.chip.noise import gaussian, per_device, programmed, right_censored_gaussian, verified

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
