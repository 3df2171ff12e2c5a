"""500 random networks: no chip is below either bound, and linear bounds are never below intervals."""

from __future__ import annotations

import pytest
import torch
from networks import Skewed, check_no_chip_is_below
from random_networks import Random
from torch import nn

from worstcase.certificate import Unsupported
from worstcase.certificate.linear import LinearBounds
from worstcase.certificate.recurrent import STEPS
from worstcase.certificate.tables import BATCH_NORMS, LINEAR, MODULES, TRANSPOSED
from worstcase.chip.crossbar import Crossbar

NETWORKS, IN_A_TEST = 500, 25


def of_seed(seed: int) -> tuple[Crossbar, torch.Tensor]:
    """A box of another width for each, some of lopsided ones, of quantised weights, and in float64."""
    random = Random(seed)
    net = random.network()
    images = torch.randn(6, *random.shape)
    if seed % 5 == 0:
        net, images = net.double(), images.double()
    kind = Skewed if seed % 2 else Crossbar
    bits = 4 if seed % 7 == 0 else None
    return kind(net, (1e-6, 0.01, 0.2)[seed % 3], weight_bits=bits), images


@pytest.mark.parametrize("first", range(0, NETWORKS, IN_A_TEST))
def test_no_chip_is_below_the_bound(first: int) -> None:
    by_linear_bounds = 0
    for seed in range(first, first + IN_A_TEST):
        crossbar, images = of_seed(seed)
        intervals = check_no_chip_is_below(crossbar, images, chips=4, seed=seed)
        try:
            linear = check_no_chip_is_below(crossbar, images, chips=4, seed=seed, method=LinearBounds)
        except Unsupported:
            continue
        by_linear_bounds += 1
        assert (linear >= intervals).all(), f"seed {seed}"
    assert by_linear_bounds >= 3


def test_they_have_every_layer() -> None:
    missing = {*MODULES, *LINEAR, *TRANSPOSED, *BATCH_NORMS, *STEPS, nn.GroupNorm, nn.LayerNorm}
    seeds = iter(range(NETWORKS))
    while missing:
        missing -= {type(layer) for layer in Random(next(seeds)).network().modules()}
