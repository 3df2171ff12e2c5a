import math
import subprocess
import sys

import pytest
import torch

from worstcase.device import conductances, device_weights, perturbation_bound, weight_of, write_verify

# (M, K): sum of 2^(iK), by hand; Eq. 4 gives th times that in level units
SUMS = {(4, 1): 15, (4, 2): 5, (4, 4): 1, (8, 1): 255, (8, 2): 85, (8, 4): 17}


@pytest.mark.parametrize(("bits", "total"), SUMS.items())
def test_eq_4_by_hand(bits, total):
    m, k = bits
    assert sum(device_weights(m, k)) == total
    assert perturbation_bound(0.06, m, k, normalised=False) == pytest.approx(0.06 * total)
    assert perturbation_bound(0.06, m, k) == pytest.approx(0.06 * total / (2**m - 1))


@pytest.mark.parametrize("bits", SUMS)
def test_eq_1_and_2_split_a_weight_into_devices_and_back(bits):
    m, k = bits
    levels = torch.arange(2**m)
    devices = conductances(levels, m, k)
    assert devices.shape == (m // k, 2**m)
    assert devices.min() == 0 and devices.max() == 2**k - 1
    assert torch.equal(weight_of(devices, m, k), levels)
    binary = [int(digit) for digit in f"{11:0{m}b}"[::-1]]  # Eq. 1: bits m_j; Eq. 2: g_i = sum of m_(iK+j) 2^j
    by_hand = [sum(binary[i * k + j] << j for j in range(k)) for i in range(m // k)]
    assert conductances(torch.tensor(11), m, k).tolist() == by_hand


def test_eq_4_bounds_what_tolerant_devices_hold():
    th, levels = 0.06, torch.arange(256).double()
    worst = conductances(levels, 8, 2) + th
    assert (weight_of(worst, 8, 2) - levels).tolist() == pytest.approx([85 * th] * 256)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: device_weights(4, 3), "weight_bits=4 is not divisible by device_bits=3"),
        (lambda: device_weights(0, 1), "must be 1 or more"),
        (lambda: perturbation_bound(-0.1, 4, 2), "tolerance=-0.1"),
        (lambda: conductances(torch.tensor([16]), 4, 2), "0 to 15 for 4 bits"),
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
    command = [sys.executable, "-m", "worstcase.device"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in shown.splitlines()[2:-1]]
    assert ["4", "2", "2", "0.3", "0.02"] in [row[:5] for row in rows]
    assert ["8", "2", "4", "5.1", "0.02"] in [row[:5] for row in rows]
    done = subprocess.run([*command, "--weight-bits", "5", "--device-bits", "2"], capture_output=True, text=True)
    assert done.returncode == 2 and "weight_bits=5 is not divisible by device_bits=2" in done.stderr
