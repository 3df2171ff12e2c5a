"""Adversarial weight perturbation (Wu et al., NeurIPS 2020, arXiv 2004.05884), of weights alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.methods.base import Method
from worstcase.objectives import cross_entropy


class AWP(Method):
    """One step up the gradient of the batch's cross-entropy, a share of each array long, then a training step.

    The original perturbs the inputs too; here they are as they are. The pass that climbs uses batch norm's running
    statistics; the other one updates them. Cost: 2 forward and 2 backward a step.

    Args:
        crossbar: the network.
        gamma: the step's Euclidean length in units of the array's, 0 or more, whatever th_g is.
        options: see `Method`.

    Raises:
        ValueError: gamma out of range.
    """

    SELECTED_BY: ClassVar = "val/accuracy"  # so that baselines are not favoured

    def __init__(self, crossbar: Crossbar, *, gamma: float = 0.01, **options: Any) -> None:
        super().__init__(crossbar, **options)
        number("gamma", gamma, low=0)
        self.gamma = gamma

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        weights = self.crossbar.programmed()
        with evaluating(self.crossbar):
            downhill = self.gradient(cross_entropy, self.crossbar.box.zero(), inputs, labels)
        uphill = {}
        for name, g in downhill.items():
            length = self.gamma * weights[name].detach().norm()
            uphill[name] = -length * g / (g.norm() + torch.finfo(g.dtype).tiny)
        return self.cross_entropy(inputs, labels, uphill)
