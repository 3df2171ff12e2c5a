"""Pulses of write-verify, against its simulation and by hand."""

import math

import pytest
import torch

from worstcase import Crossbar, DeviceMapping
from worstcase.chip.write_verify import device_weights, perturbation_bound, write_verify
from worstcase.verify.cost import Programming
from worstcase.verify.sharing import mean_pulses


@pytest.mark.parametrize(("weight_bits", "device_bits"), [(4, 2), (8, 4), (4, 4)])
def test_pulses_are_those_of_simulated_write_verify(weight_bits, device_bits):
    programming = Programming(sigma=0.1, weight_bits=weight_bits, device_bits=device_bits)
    thg = perturbation_bound(0.06, weight_bits, device_bits)
    devices = len(device_weights(weight_bits, device_bits))
    done = write_verify((200_000,), 0.1, 0.06, generator=torch.Generator().manual_seed(0))
    assert programming.pulses(thg).item() == pytest.approx(devices * done.mean_pulses, rel=0.01)


def test_a_tighter_bound_takes_more_pulses_and_a_wide_one_a_pulse_for_each_device():
    programming = Programming()
    pulses = programming.pulses(torch.tensor([0.0, 0.001, 0.01, 0.1, 1.0]))
    assert pulses[0] == math.inf and (pulses.diff() <= 0).all() and pulses[-1] == 2
    assert programming.bound_of(programming.pulses(0.02).item()) == pytest.approx(0.02)


def test_time_and_energy_by_hand():
    programming = Programming(pulse_seconds=1e-6, read_seconds=3e-6, pulse_joules=2e-12, parallel=8)
    assert programming.seconds(1000) == pytest.approx(1000 * 4e-6 / 8)
    assert programming.joules(1000) == pytest.approx(2e-9)
    assert Programming().seconds(1000) is None and Programming().joules(1000) is None


def test_the_bits_are_the_crossbars():
    net = torch.nn.Linear(3, 2)
    eight = Crossbar(net, 0.1, weight_bits=8, mapping=DeviceMapping(device_bits=1))
    assert Programming.of(Crossbar(net, 0.1)) == Programming()
    assert Programming.of(Crossbar(net, 0.1, weight_bits=8)).devices == 4
    assert Programming.of(eight).devices == 8 and mean_pulses({"weight": 1.0}, eight, Programming.of(eight)) == 8
    with pytest.raises(ValueError, match=r"has 8 bits a weight and 2 a device, but the crossbar has 8 and 1; say"):
        Programming.of(eight, Programming(weight_bits=8))
    with pytest.raises(ValueError, match=r"has 4 bits a weight and 2 a device, but the crossbar has 8 and 2; say"):
        Programming.of(Crossbar(net, 0.1, weight_bits=8), Programming(sigma=0.2))


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0}, {"weight_bits": 5}, {"parallel": 0}, {"pulse_seconds": -1.0}, {"read_seconds": "x"}]
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Programming(**wrong)
