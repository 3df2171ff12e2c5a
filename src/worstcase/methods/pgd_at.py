"""PGD adversarial training of the weights (Madry et al., ICLR 2018, arXiv 1706.06083, for weights)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number, whole
from worstcase.chip.crossbar import Crossbar
from worstcase.methods.base import Method


class PGDAT(Method):
    """PGD-AT: a few sign steps up the cross-entropy of the batch, then a training step on that chip.

    Cost: `steps` + 1 forward and backward passes a step, and 1 more with a clean share.

    Args:
        crossbar: the network with its th_g.
        steps: sign steps of the adversary, from zero.
        step: their size in units of the training box's farther end.
        factor: the training box in units of the crossbar's: more than 1 leaves a margin to attacks that are
            stronger than the adversary.
        ramp: share of the training over which the training box grows from 0, 0..1.
        clean: share of the loss as programmed, 0..1.
        weight_clip: see `Method`.
        options: see `Method`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        steps: int = 3,
        step: float = 0.5,
        factor: float = 1.5,
        ramp: float = 0.3,
        clean: float = 0.2,
        weight_clip: float | None = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, weight_clip=weight_clip, **options)
        whole("steps", steps)
        number("step", step, low=0)
        number("factor", factor, low=0)
        number("ramp", ramp, low=0, high=1)
        number("clean", clean, low=0, high=1)
        self.steps, self.step, self.factor, self.ramp, self.clean = steps, step, factor, ramp, clean

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        box = self.training_box(self.factor, self.ramp)
        adversary = self.found_by_steps(box, inputs, labels, steps=self.steps, step=self.step)
        return self.loss_at(adversary, inputs, labels, clean=self.clean)
