"""Pulses shared out among weights, against brute force."""

import pytest
import torch

from worstcase.verify.allocation import WIDEST, allocated
from worstcase.verify.cost import Programming


def damage(sensitivity, bounds):
    return sum((sensitivity[name] * bounds[name]).sum().item() for name in sensitivity)


def mean_pulses(bounds, programming):
    return programming.pulses(torch.cat([one.flatten() for one in bounds.values()])).mean().item()


def test_no_other_sharing_of_a_fine_grid_is_better():
    programming = Programming()
    sensitivity = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([0.2])}
    found = allocated(sensitivity, 6.0, programming)
    assert mean_pulses(found, programming) == pytest.approx(6.0, rel=1e-4)
    least = damage(sensitivity, found)
    grid = torch.logspace(-3, -1, 120, dtype=torch.double)
    cost = programming.pulses(grid)
    spent = cost[:, None, None] + cost[:, None] + cost
    done = grid[:, None, None] * 1.0 + grid[:, None] * 4.0 + grid * 0.2
    best = done[spent <= 18.0].min().item()
    assert least <= best * (1 + 1e-6)
    assert best <= 1.05 * least


def test_equal_weights_get_the_bound_that_the_pulses_buy():
    programming = Programming(sigma=0.2, weight_bits=8, device_bits=4)
    found = allocated({"w": torch.full((5, 7), 3.0)}, 5.0, programming)["w"]
    assert found.shape == (5, 7)
    torch.testing.assert_close(
        found, torch.full((5, 7), programming.bound_of(5.0), dtype=torch.double), rtol=1e-4, atol=0
    )


def test_more_pulses_mean_tighter_bounds_for_all_and_what_does_not_matter_gets_the_widest():
    sensitivity = {"w": torch.tensor([0.0, 1.0, 2.0, 50.0])}
    loose, tight = (allocated(sensitivity, pulses)["w"] for pulses in (4.0, 8.0))
    assert (tight <= loose).all() and (loose.diff() < 0).all()
    widest = WIDEST / Programming().sigmas_of_full_scale
    assert loose[0] == pytest.approx(widest) and tight[0] == pytest.approx(widest)


def test_no_bound_is_wider_than_a_crossbar_takes():
    coarse = Programming(sigma=0.4, weight_bits=2, device_bits=1)
    bounds = allocated({"w": torch.tensor([0.0, 1.0, 2.0])}, 2.2, coarse)["w"]
    assert bounds[0] == 1 and bool((bounds <= 1).all())
    assert coarse.pulses(bounds).mean().item() == pytest.approx(2.2, rel=1e-3)


@pytest.mark.parametrize("wrong", [[-1.0, 1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_what_cannot_be_shared_out_is_refused(wrong):
    with pytest.raises(ValueError, match="sensitivity"):
        allocated({"w": torch.tensor(wrong)}, 4.0)
    with pytest.raises(ValueError, match=r"pulses=2.0: must be above 2 and 2e\+06 or less, a weight"):
        allocated({"w": torch.ones(2)}, 2.0)
    with pytest.raises(ValueError, match="and 1,000,000 at most"):
        allocated({"w": torch.ones(2)}, 1e9)


def test_the_most_pulses_are_spent():
    bounds = allocated({"w": torch.tensor([1.0, 2.0])}, 2e6)["w"]
    assert Programming().pulses(bounds).mean().item() == pytest.approx(2e6, rel=0.01)
