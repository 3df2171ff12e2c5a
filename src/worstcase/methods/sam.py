"""Sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412) of the programmed weights."""

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


class SAM(Method):
    """One step of length rho up the gradient of the batch's cross-entropy, then a training step from there.

    The step is in the Euclidean norm over all arrays together, whatever th_g is. The pass that climbs uses batch
    norm's running statistics; the other one updates them. Cost: 2 forward and 2 backward a step.

    Args:
        crossbar: the network.
        rho: the length of the step in weight units, 0 or more.
        options: see `Method`.

    Raises:
        ValueError: rho out of range.
    """

    SELECTED_BY: ClassVar = "val/accuracy"  # so that baselines are not favoured

    def __init__(self, crossbar: Crossbar, *, rho: float = 0.05, **options: Any) -> None:
        super().__init__(crossbar, **options)
        number("rho", rho, low=0)
        self.rho = rho

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        with evaluating(self.crossbar):
            downhill = self.gradient(cross_entropy, self.crossbar.box.zero(), inputs, labels)
        length = torch.stack([g.norm() for g in downhill.values()]).norm()
        uphill = {name: -self.rho * g / (length + torch.finfo(g.dtype).tiny) for name, g in downhill.items()}
        return self.cross_entropy(inputs, labels, uphill)
