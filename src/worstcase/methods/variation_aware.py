"""Variation-aware training: Gaussian noise on the weights in every step (Section IV-B of the paper)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.noise import gaussian, verified_devices
from worstcase.methods.base import Method


class VariationAware(Method):
    """VA: cross-entropy at W + noise, fresh Gaussian noise for each batch, its gradient applied to W.

    Cost: 1 forward and 1 backward a step. The pass with noise updates batch norm's statistics.

    Args:
        crossbar: the network.
        sigma: standard deviation in units of the full scale, 0 or more, whatever th_g is; None: that of the
            devices, see `Crossbar.sigma`.
        verified: only noise that write-verify lets pass, with sigma of each device of a weight, see
            `worstcase.chip.noise.verified_devices`.
        options: see `Method`.

    Raises:
        ValueError: sigma out of range.
    """

    SELECTED_BY = "val/accuracy"  # so that baselines are not favoured

    def __init__(
        self, crossbar: Crossbar, *, sigma: float | None = 0.1, verified: bool = False, **options: Any
    ) -> None:
        super().__init__(crossbar, **options)
        if sigma is not None:
            number("sigma", sigma, low=0)
        self.sigma, self.verified = sigma, verified

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        return self.cross_entropy(inputs, labels, self._noise())

    def _noise(self) -> dict[str, Tensor]:
        if self.verified:
            return verified_devices(self.crossbar, self.crossbar.box, self.sigma)(self.draws)
        return gaussian(self.crossbar.programmed(), self.in_weight_units(self.sigma), self.draws)
