"""A training method of your own: subclass one of worstcase.methods, and name the class in a file of settings.

python -m src.train --config-dir examples/conf method=universal_kl

Both keep the pool of chips of universal_at and change what is asked of the network on a chip. What they reach is
in docs/training.md.
"""

import torch.nn.functional as F
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.chip.box import Perturbation
from worstcase.chip.modes import evaluating
from worstcase.methods import UniversalAT
from worstcase.task import decisions


class UniversalKL(UniversalAT):
    """On a chip the network answers as it does as programmed: TRADES (Zhang et al., ICML 2019) for weights.

    clean x cross-entropy as programmed + (1 - clean) x KL divergence of the chip's answers from these. Cost: 2
    forward and 2 backward passes a step.
    """

    def loss_at(self, adversary: Perturbation, inputs: Inputs, labels: Tensor, *, clean: float) -> Tensor:
        programmed, classes = decisions(self.crossbar(inputs), labels)
        with evaluating(self.crossbar):
            chip, _ = decisions(self.crossbar(inputs, adversary), labels)
        log_p, log_q = programmed.log_softmax(1), chip.log_softmax(1)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return clean * F.cross_entropy(programmed, classes) + (1 - clean) * divergence


class UniversalMargin(UniversalAT):
    """On a chip the logit of the right class shall be ahead of each other one by 1: the hinge loss of SVMs."""

    def cross_entropy(self, inputs: Inputs, labels: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        return F.multi_margin_loss(*decisions(self.crossbar(inputs, perturbation), labels))
