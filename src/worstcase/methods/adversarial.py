"""Adversarial training of the weights with any attack inside each step (Algorithm 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worstcase.attacks import Attack
from worstcase.batches import Inputs
from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.methods.base import Method


class Adversarial(Method):
    """Adversarial training as printed (Algorithm 2): an attack on the batch, then a step at W + N.

    Cost: the attack's passes over the batch, 1 forward and 1 backward (and as much again with a clean
    share). Several processes all take the perturbation that the first found on its part of the batch.

    Args:
        crossbar: the network with its th_g.
        attack: finds the perturbation of a batch.
        clean: share of the loss as programmed, 0..1; Algorithm 2 has none.
        options: see `Method`.

    Raises:
        ValueError: clean out of range.
    """

    def __init__(self, crossbar: Crossbar, *, attack: Attack, clean: float = 0.0, **options: Any) -> None:
        super().__init__(crossbar, **options)
        number("clean", clean, low=0, high=1)
        self.attack, self.clean = attack, clean

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        seed = self.draws.initial_seed()
        found = self.attack(self.crossbar, [(inputs, labels)], seed=seed, progress=False)  # line 7
        # The attack scores without gradients: under autocast its casts of the biases would be reused.
        torch.clear_autocast_cache()
        adversary = {name: self.of_first_process(d) for name, d in found.perturbation.items()}
        return self.loss_at(adversary, inputs, labels, clean=self.clean)  # lines 8-10
