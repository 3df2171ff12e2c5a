"""Training with random errors of the box's size, as RandBET (Stutz et al., MLSys 2021, arXiv 2006.13977) does."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import choice, number
from worstcase.chip.crossbar import Crossbar
from worstcase.methods.base import Method


class RandomErrors(Method):
    """Cross-entropy on a chip that is drawn anew for each batch, with a share as programmed.

    RandBET flips bits of quantised weights at random and clips the weights; here each weight goes to an end of
    the training box at random, which is the largest error that write-verify lets pass. Cost: 1 forward and 1
    backward a step, and 1 more of each with a clean share.

    Args:
        crossbar: the network with its th_g.
        kind: of chips, see `Box.sample`: ``vertex`` or ``uniform``.
        factor: the training box in units of the crossbar's.
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
        kind: str = "vertex",
        factor: float = 1.0,
        ramp: float = 0.0,
        clean: float = 0.5,
        weight_clip: float | None = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, weight_clip=weight_clip, **options)
        choice("kind", kind, ("vertex", "uniform"))
        number("factor", factor, low=0)
        number("ramp", ramp, low=0, high=1)
        number("clean", clean, low=0, high=1)
        self.kind, self.factor, self.ramp, self.clean = kind, factor, ramp, clean

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        chip = self.training_box(self.factor, self.ramp).sample(self.kind, self.draws)
        return self.loss_at(chip, inputs, labels, clean=self.clean)
