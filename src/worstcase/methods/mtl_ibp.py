"""Training for the proof and against an attack at once.

MTL-IBP (De Palma et al., ICLR 2024, arXiv 2305.13991), for weights that deviate in place of inputs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number, whole
from worstcase.chip.crossbar import Crossbar
from worstcase.methods.ibp import IBP


class MTLIBP(IBP):
    """IBP whose other share is the loss on the chip that a few sign steps find, as in PGD-AT.

    The worst loss that intervals leave possible is above the worst case, the loss on a chip that was found below:
    a mixture is nearer to it than either. Cost: that of IBP, and `steps` + 1 forward and backward passes.

    Args:
        crossbar: the network with its th_g.
        share: of the worst loss that intervals leave possible, once it has grown, 0..1.
        steps: sign steps up the cross-entropy of the batch, from zero.
        step: their size in units of the training box's farther end.
        clean: share of the other loss as programmed, 0..1.
        factor, ramp, decades, weight_clip: see `IBP`.
        options: see `Method`.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        share: float = 0.3,
        steps: int = 1,
        step: float = 1.0,
        clean: float = 0.2,
        factor: float = 1.0,
        ramp: float = 0.5,
        decades: float | None = None,
        weight_clip: float | None = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(
            crossbar, share=share, factor=factor, ramp=ramp, decades=decades, weight_clip=weight_clip, **options
        )
        whole("steps", steps)
        number("step", step, low=0)
        number("clean", clean, low=0, high=1)
        self.steps, self.step, self.clean = steps, step, clean

    def other_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        box = self.training_box(self.factor, self.ramp, self.decades)
        adversary = self.found_by_steps(box, inputs, labels, steps=self.steps, step=self.step)
        return self.loss_at(adversary, inputs, labels, clean=self.clean)
