"""A training method of your own: subclass one of worstcase.methods, and name the class in a file of settings.

python -m src.train --config-dir examples/conf method=universal_margin

What it reaches is in docs/training.md.
"""

import torch.nn.functional as F
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.chip.box import Perturbation
from worstcase.methods import UniversalAT
from worstcase.task import decisions


class UniversalMargin(UniversalAT):
    """universal_at with the hinge loss: the logit of the right class shall be ahead of each other one by 1."""

    def cross_entropy(self, inputs: Inputs, labels: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        return F.multi_margin_loss(*decisions(self.crossbar(inputs, perturbation), labels))
