import math

import pytest
import torch
from commands import run
from scipy.stats import ks_2samp, kstest, truncnorm

from worstcase.chip.presets import PRESETS
from worstcase.chip.write_verify import device_weights, perturbation_bound, write_verify

# (M, K): sum of 2^(iK), by hand; Eq. 4 gives th times that in level units
SUMS = {(4, 1): 15, (4, 2): 5, (4, 4): 1, (8, 1): 255, (8, 2): 85, (8, 4): 17}


@pytest.mark.parametrize(("bits", "total"), SUMS.items())
def test_eq_4_by_hand(bits, total):
    m, k = bits
    assert sum(device_weights(m, k)) == total
    assert perturbation_bound(0.06, m, k) == pytest.approx(0.06 * total / (2**m - 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: device_weights(4, 3), "weight_bits=4 is not divisible by device_bits=3"),
        (lambda: device_weights(0, 1), "weight_bits=0: must be a whole number from 1 to 32"),
        (lambda: device_weights(10**9, 1), "weight_bits=1000000000: must be a whole number from 1 to 32"),
        (lambda: device_weights(4, 0), "device_bits=0: must be a whole number from 1 to 32"),
        (lambda: device_weights(4.0, 2), r"weight_bits=4\.0: must be a whole number"),
        (lambda: perturbation_bound(0.06, 1024, 1), "weight_bits=1024: must be"),
        (lambda: perturbation_bound(-0.1, 4, 2), "tolerance=-0.1"),
        (lambda: write_verify((3,), math.nan, 0.1), "sigma=nan"),
        (lambda: write_verify((3,), 0.1, 0.1, max_pulses=0), "max_pulses=0"),
    ],
)
def test_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_write_verify_follows_the_truncated_gaussian_and_the_geometric_cost():
    sigma, tolerance, n = 0.1, 0.06, 200_000
    done = write_verify((n,), sigma, tolerance, generator=torch.Generator().manual_seed(0))
    assert done.failed == 0 and done.deviation.abs().max() <= tolerance
    t = tolerance / sigma
    hit = math.erf(t / math.sqrt(2))
    density = math.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    variance = sigma**2 * (1 - 2 * t * density / hit)
    assert done.deviation.var().item() == pytest.approx(variance, rel=0.02)
    assert done.mean_pulses == pytest.approx(1 / hit, rel=0.01)
    assert (done.pulses == 1).double().mean().item() == pytest.approx(hit, abs=0.005)


def pulse_by_pulse(n, sigma, tolerance, max_pulses, generator):
    """Write-verify as it runs: deviations and pulses of n devices."""
    deviation, pulses = torch.zeros(n, dtype=torch.double), torch.zeros(n)
    going = torch.ones(n, dtype=torch.bool)
    for _ in range(max_pulses):
        drawn = sigma * torch.randn(n, generator=generator, dtype=torch.double)
        deviation, pulses = torch.where(going, drawn, deviation), pulses + going
        going &= deviation.abs() > tolerance
    return deviation, pulses


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.1, 0.06), (0.1, 0.01), (0.1, 0.25), (3.0, 1.5)])
@pytest.mark.parametrize("max_pulses", [1, 4])
def test_write_verify_is_what_pulse_by_pulse_gives(sigma, tolerance, max_pulses):
    n = 20_000
    done = write_verify((n,), sigma, tolerance, max_pulses=max_pulses, generator=torch.Generator().manual_seed(0))
    deviation, pulses = pulse_by_pulse(n, sigma, tolerance, max_pulses, torch.Generator().manual_seed(1))
    for count in range(1, max_pulses + 1):
        share = (pulses == count).double().mean().item()
        spread = math.sqrt(2 * max(share * (1 - share), 1 / n) / n)
        assert (done.pulses == count).double().mean().item() == pytest.approx(share, abs=4 * spread)
    fails = deviation.abs() > tolerance
    for found, expected in (
        (done.deviation[done.verified], deviation[~fails]),
        (done.deviation[~done.verified], deviation[fails]),
    ):
        if min(len(found), len(expected)) > 100:
            assert ks_2samp(found, expected).pvalue > 1e-4


@pytest.mark.parametrize("t", [0.05, 0.6, 2.0])
def test_the_closed_forms_of_write_verify(t):
    """Geometric numbers of pulses, a truncated Gaussian of those that verify, its tails of the others."""
    n, budget, sigma = 100_000, 3, 0.1
    hit, miss = math.erf(t / math.sqrt(2)), math.erfc(t / math.sqrt(2))
    done = write_verify((n,), sigma, t * sigma, max_pulses=budget, generator=torch.Generator().manual_seed(0))
    failed = done.failed / n
    assert failed == pytest.approx(miss**budget, abs=4 * math.sqrt(miss**budget / n))
    mean = (1 - miss**budget) / hit  # of the geometric distribution, cut off at the budget
    assert done.mean_pulses == pytest.approx(mean, rel=0.02)
    inside = (done.deviation[done.verified] / sigma).numpy()
    assert kstest(inside, truncnorm(-t, t).cdf).pvalue > 1e-4
    outside = done.deviation[~done.verified] / sigma
    if len(outside) > 100:
        assert kstest(outside.abs().numpy(), truncnorm(t, math.inf).cdf).pvalue > 1e-4
        assert (outside > 0).double().mean().item() == pytest.approx(0.5, abs=2 / math.sqrt(len(outside)))


def test_the_budget_costs_no_time_and_a_tiny_chance_is_exact():
    """A chance of a hit of 8e-7 a pulse: the share that verifies in n pulses is 1 - (1 - p)^n."""
    p = math.erf(1e-6 / math.sqrt(2))
    draws = (torch.Generator().manual_seed(0) for _ in range(2))
    done = write_verify((50_000,), 1.0, 1e-6, max_pulses=1_000_000, generator=next(draws))
    assert done.failed / 50_000 == pytest.approx(math.exp(1_000_000 * math.log1p(-p)), abs=0.01)
    assert (done.pulses.double() ** 2).mean().item() > done.mean_pulses**2  # they are not all the same
    whole = write_verify((50_000,), 1.0, 1e-6, max_pulses=10**15, generator=next(draws))
    assert whole.failed == 0 and whole.mean_pulses == pytest.approx(1 / p, rel=0.02)


@pytest.mark.parametrize(
    ("sigma", "tolerance", "pulses", "failed"),
    [
        (0.1, 0.0, 7, 1000),  # no deviation is within 0
        (1e300, 1e-300, 7, 1000),
        (0.0, 0.0, 1, 0),  # but exactly 0
        (0.0, 0.1, 1, 0),
        (1e-300, 1e300, 1, 0),
        (0.1, 4.0, 1, 0),
    ],
)
def test_what_no_pulse_or_every_pulse_verifies(sigma, tolerance, pulses, failed):
    done = write_verify((1000,), sigma, tolerance, max_pulses=7, generator=torch.Generator().manual_seed(0))
    assert done.failed == failed and (done.pulses == pulses).all()
    assert torch.equal(done.verified, done.deviation.abs() <= tolerance)
    if sigma:
        assert 0.9 < done.deviation.div(sigma).std().item() < 1.1
    else:
        assert not done.deviation.any()


@pytest.mark.parametrize("tolerance", [1e-12, 0.06, 0.1 + 0.2, 0.7, 1 / 3])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 7.0])
def test_verified_is_within_the_tolerance_exactly_and_failed_is_not(sigma, tolerance):
    done = write_verify((5000,), sigma, tolerance, max_pulses=2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(done.verified, done.deviation.abs() <= tolerance)


def test_a_smaller_tolerance_costs_more_pulses():
    costs = [
        write_verify((20_000,), 0.1, tolerance, generator=torch.Generator().manual_seed(0)).mean_pulses
        for tolerance in (0.2, 0.1, 0.05, 0.02)
    ]
    assert costs == sorted(costs)


def test_devices_that_fail_to_verify_are_counted_and_left_where_they_are():
    done = write_verify((20_000,), 0.1, 0.01, max_pulses=3, generator=torch.Generator().manual_seed(0))
    miss = (1 - math.erf(0.1 / math.sqrt(2))) ** 3
    assert done.failed / 20_000 == pytest.approx(miss, abs=0.01)
    assert (done.deviation[~done.verified].abs() > 0.01).all()
    assert (done.pulses[~done.verified] == 3).all()


def test_same_generator_same_devices():
    first, again = (write_verify((99,), 0.1, 0.05, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.deviation, again.deviation)


def test_the_table_is_printed_and_bad_input_named():
    shown = run("worstcase.device").stdout
    rows = [line.split() for line in shown.splitlines()[2:-1]]
    assert ["4", "2", "2", "0.3", "0.02"] in [row[:5] for row in rows]
    assert ["8", "2", "4", "5.1", "0.02"] in [row[:5] for row in rows]
    for said, message in {
        "--weight-bits 5 --device-bits 2": "weight_bits=5 is not divisible by device_bits=2",
        "--weight-bits 1024": "weight_bits=1024: must be a whole number from 1 to 32",
        "--sigmas 2": "--sigmas: needs --table",
        "--seed -1": "seed=-1: must be a whole number from 0 to 4294967295",
    }.items():
        done = run("worstcase.device", *said.split(), fails=True)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    shown = run("worstcase.device", "--table", "rram_wan2022").stdout
    assert "          40    6.36  -12.72   12.72" in shown and "2 sigma: 95.4% of devices pass at once" in shown
    assert "Wan et al." in shown and "0.1272 of the largest" in shown
    assert run("worstcase.device", "--table", "--sigmas", "3").stdout.count("99.7% of devices") == len(PRESETS)
    refused = run("worstcase.device", "--table", "nowhere.csv", "rram", fails=True).stderr
    assert refused == "error: there is no table of a tolerance at nowhere.csv\n"
    shown = run("worstcase.device", "--max-pulses", "100000000000", "--tolerance", "0").stdout
    assert "100,000 of 100,000 devices did not verify in 100000000000 pulses" in shown
