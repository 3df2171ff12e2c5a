"""Adversarial training of the weights against a pool of persistent perturbations.

Universal adversarial training (Shafahi et al., AAAI 2020, arXiv 1811.11304) for weights: one perturbation
serves all inputs, as one chip does, so it is worth keeping it from batch to batch; and its gradient comes
with the weights' from the same pass, as in 'free' adversarial training (arXiv 1904.12843).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import choice, number, whole
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.methods.base import Method, sum_over_processes
from worstcase.seeds import seeded
from worstcase.task import decisions


class UniversalAT(Method):
    """Each batch trains on one perturbation of the pool, and improves it by one sign step with momentum.

    Cost: 1 forward and 1 backward a step, and 1 more of each with a clean share or `loss` kl. The pool is relative
    to the training box, so it follows the weights, and part of the checkpoint.

    Args:
        crossbar: the network with its th_g.
        members: perturbations in the pool, 1 or more.
        step: of a perturbation's improvement, relative to the training box.
        momentum: of its gradient, each normalised by the mean absolute value in its array; 0..1.
        lifetime: batches of its own that a perturbation lives on average before it starts anew at a random point,
            so of all batches `members` times as many; None: it never does.
        factor: the training box in units of the crossbar's: more than 1 leaves a margin to attacks that are
            stronger than the pool.
        ramp: share of the training over which the training box grows from 0, 0..1.
        clean: share of the loss as programmed, 0..1.
        loss: on the chip: ``cross_entropy``, or ``kl``, how far its answers are from those as programmed, as in
            TRADES (Zhang et al., ICML 2019, arXiv 1901.08573), which perturbs inputs.
        weight_clip: see `Method`.
        options: see `Method`.

    Raises:
        ValueError: a setting out of range.
    """

    pool: Tensor
    """(members, weights), -1..1 relative to the training box (see `Box.at`), the arrays one after another."""
    velocity: Tensor
    """The gradients that the pool follows, summed up with momentum; of the pool's shape."""

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        members: int = 8,
        step: float = 0.1,
        momentum: float = 0.75,
        lifetime: float | None = None,
        factor: float = 1.5,
        ramp: float = 0.3,
        clean: float = 0.2,
        loss: str = "cross_entropy",
        weight_clip: float | None = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, weight_clip=weight_clip, **options)
        whole("members", members)
        number("step", step, low=0)
        number("momentum", momentum, low=0, high=1)
        if lifetime is not None:
            number("lifetime", lifetime, low=1)
        number("factor", factor, low=0)
        number("ramp", ramp, low=0, high=1)
        number("clean", clean, low=0, high=1)
        choice("loss", loss, ("cross_entropy", "kl"))
        if loss == "kl" and clean == 0:
            raise ValueError(
                f"clean={clean}: must be above 0 with loss=kl, of which it is the share of the labels"
            )
        self.step, self.momentum, self.lifetime = step, momentum, lifetime
        self.factor, self.ramp, self.clean, self.loss = factor, ramp, clean, loss
        size = (members, sum(weight.numel() for weight in crossbar.programmed().values()))
        self.register_buffer("pool", torch.empty(size).uniform_(-1, 1, generator=seeded(self.seed, "pool")))
        self.register_buffer("velocity", torch.zeros(size))
        self._member = 0
        self._adversary: dict[str, Tensor] = {}

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        self._member = int(self._draw() * len(self.pool))
        if self.lifetime is not None and self._draw() * self.lifetime < 1:
            self.pool[self._member].uniform_(-1, 1, generator=self.draws)
            self.velocity[self._member].zero_()
        box = self.training_box(self.factor, self.ramp)
        self._adversary = box.at(self._by_array(self.pool))
        for d in self._adversary.values():
            d.requires_grad_()
        if self.loss == "kl":
            return self._divergence(inputs, labels)
        return self.loss_at(self._adversary, inputs, labels, clean=self.clean)

    def _divergence(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """clean x cross-entropy as programmed + (1 - clean) x KL divergence of the chip's answers from these.

        The pass as programmed updates batch norm's running statistics, and the chip's uses them.
        """
        programmed, classes = decisions(self.crossbar(inputs), labels)
        with evaluating(self.crossbar):
            chip, _ = decisions(self.crossbar(inputs, self._adversary), labels)
        log_p, log_q = programmed.log_softmax(1), chip.log_softmax(1)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        return self.clean * F.cross_entropy(programmed, classes) + (1 - self.clean) * divergence

    @torch.no_grad()
    def on_after_backward(self) -> None:
        """Improve the perturbation by its gradient, which the backward pass of the weights left."""
        units, velocities = self._by_array(self.pool), self._by_array(self.velocity)
        for name, d in self._adversary.items():
            if d.grad is None:  # the network did not use this array
                continue
            gradient = sum_over_processes(d.grad).nan_to_num_(0, 0, 0)  # float16 overflows now and then
            gradient /= gradient.abs().mean().clamp_min(torch.finfo(gradient.dtype).tiny)
            velocities[name].mul_(self.momentum).add_(gradient)
            units[name].add_(self.step * velocities[name].sign()).clamp_(-1, 1)

    def _draw(self) -> float:
        return torch.rand((), generator=self.draws, device=self.draws.device).item()

    def _by_array(self, buffer: Tensor) -> dict[str, Tensor]:
        """The present member's part of a buffer as views in the shapes of the weights."""
        weights = self.crossbar.programmed()
        parts = buffer[self._member].split([weight.numel() for weight in weights.values()])
        return {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
