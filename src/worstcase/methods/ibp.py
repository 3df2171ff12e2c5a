"""Training for the proof: the worst loss that interval bounds leave possible.

Interval bound propagation (Gowal et al., ICCV 2019, arXiv 1810.12715), where weights deviate in place of inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worstcase.batches import Inputs, inputs_and_labels
from worstcase.certificate.interval import IntervalBounds, check_provable
from worstcase.checks import number
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.methods.base import Method


class IBP(Method):
    """A share of the worst loss that intervals leave possible in the training box, the rest as programmed.

    The box grows from nothing, and so does the share: a network that has learnt nothing cannot be proven. The
    epoch with the most decisions proven within the crossbar's own box is kept.

    Cost: about 4 forward and 4 backward passes a step. The network must be one that `worstcase.certificate`
    has rules for.

    Args:
        crossbar: the network with its th_g.
        share: of the worst loss once it has grown, 0..1.
        factor: the training box in units of the crossbar's.
        ramp: share of the training over which the training box and the worst loss's share grow from 0, 0..1.
        decades: the training box begins so many powers of ten below its size, and grows by the same factor in each
            step; above 0. None: evenly. Bounds of a deep network grow with each layer, so that it learns only
            from a box that begins so small, and from weights that can do the task (``init_from=``).
        weight_clip: see `Method`.
        options: see `Method`.

    Raises:
        ValueError: a setting out of range.
    """

    SELECTED_BY = "val/certified_accuracy"

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        share: float = 0.5,
        factor: float = 1.0,
        ramp: float = 0.5,
        decades: float | None = None,
        weight_clip: float | None = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, weight_clip=weight_clip, **options)
        number("share", share, low=0, high=1)
        number("factor", factor, low=0)
        number("ramp", ramp, low=0, high=1)
        if decades is not None:
            number("decades", decades, above=0)
        self.share, self.factor, self.ramp, self.decades = share, factor, ramp, decades
        self._bounds: IntervalBounds | None = None

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        share = self.share * self.grown(self.ramp)
        loss = self.other_loss(inputs, labels)
        return (1 - share) * loss + share * worst_loss(self.margins(self._box(), inputs, labels), labels)

    def other_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """What the rest of the loss is: the cross-entropy as programmed."""
        return self.cross_entropy(inputs, labels)

    def _box(self) -> Box:
        """Its ends have a gradient: they grow with each array's largest weight."""
        box = self.training_box(self.factor, self.ramp, self.decades)
        if self.crossbar.full_scale != "layer_max":
            return box
        largest = {name: w.abs().amax().clamp_min(1e-30) for name, w in self.crossbar.programmed().items()}
        low, high = (
            {name: end * (largest[name] / largest[name].detach()) for name, end in ends.items()}
            for ends in (box.low, box.high)
        )
        return Box(low, high, box.weights)

    def margins(self, box: Box, inputs: Inputs, labels: Tensor) -> Tensor:
        """See `IntervalBounds.margins`; batch norm computes with its running statistics."""
        check_provable(inputs, labels)
        device = labels.device.type
        with evaluating(self.crossbar), torch.autocast(device, enabled=False):
            if self._bounds is None:
                outputs = self.crossbar(inputs)  # which looks whether it multiplies with its arrays as they are
                self._bounds = IntervalBounds(self.crossbar)
                self._bounds.compare(inputs, outputs)
            self._bounds.within(box)
            return self._bounds.margins(inputs, labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        inputs, labels = inputs_and_labels(batch)
        proven = (self.margins(self.crossbar.box, inputs, labels) > 0).all(1).float().mean()
        self.log(
            "val/certified_accuracy", proven, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels)
        )


def worst_loss(margins: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy if each other output is as far above the label's as its margin lets it, on average."""
    return F.cross_entropy(-margins.scatter(1, labels[:, None], 0.0), labels)
