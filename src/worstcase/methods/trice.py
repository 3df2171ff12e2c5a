"""TRICE: training with right-censored Gaussian noise (Eq. 11; Yan et al., ICCAD 2023, arXiv 2307.15853)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.methods.base import Method


class Trice(Method):
    """TRICE: as `VariationAware`, with noise that is cut off on the right (Eq. 11).

    Cost: 1 forward and 1 backward a step. The pass with noise updates batch norm's statistics.
    TRICE's own search of sigma is in ``examples/trice_search.py``.

    Args:
        crossbar: the network.
        sigma: sigma_t of Eq. 11 in units of the full scale, 0 or more; None: that of the devices, see
            `Crossbar.sigma`.
        threshold: th of Eq. 11 in units of sigma_t.
        options: see `Method`.

    Raises:
        ValueError: sigma or threshold out of range.
    """

    def __init__(
        self, crossbar: Crossbar, *, sigma: float | None = 0.1, threshold: float = 1.0, **options: Any
    ) -> None:
        super().__init__(crossbar, **options)
        if sigma is not None:
            number("sigma", sigma, low=0)
        number("threshold", threshold)
        self.sigma, self.threshold = sigma, threshold

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        noise = self.right_censored_noise(self.sigma, self.threshold)
        return self.cross_entropy(inputs, labels, noise)
