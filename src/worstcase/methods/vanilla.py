"""Vanilla training: the paper's 'regular' baseline, without noise."""

from __future__ import annotations

from torch import Tensor

from worstcase.batches import Inputs
from worstcase.methods.base import Method


class Vanilla(Method):
    """Cross-entropy at the weights as programmed. Cost: 1 forward and 1 backward a step."""

    SELECTED_BY = "val/accuracy"

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        return self.cross_entropy(inputs, labels)
