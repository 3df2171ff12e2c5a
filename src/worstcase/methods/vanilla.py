"""Vanilla training: the paper's 'regular' baseline, without noise."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from worstcase.methods.base import Method


class Vanilla(Method):
    """Cross-entropy at the weights as programmed. Cost: 1 forward and 1 backward a step."""

    SELECTED_BY = "val/accuracy"

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.crossbar(images), labels)
