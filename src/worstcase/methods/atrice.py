"""A-TRICE: adversarial training with right-censored Gaussian noise (Algorithm 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.methods.base import Method, sum_over_processes
from worstcase.objectives import p2


class ATrice(Method):
    """A-TRICE as printed (Algorithm 3): a one-step adversary and a noise sample in each update.

    The two passes of the adversary use batch norm's running statistics; the pass with noise is the one
    that updates them. Cost: 3 forward and 3 backward a step; with `reuse` 2 of each.

    Args:
        crossbar: the network with its th_g.
        alpha: weight of the adversarial loss, 0..1; 1 is single-step adversarial training.
        step: s, the adversary's step in units of each array's bound.
        sigma: sigma_t of Eq. 11 in units of the full scale, 0 or more; None: that of the devices, see
            `Crossbar.sigma`.
        threshold: th of Eq. 11 in units of sigma_t.
        reuse: not the paper's: the adversary is one sign step up the loss of the last batch's adversary, whose
            gradient the backward pass of the weights left there, as in 'free' adversarial training (Shafahi et
            al., 2019, arXiv 1904.12843).
        options: see `Method`.

    Raises:
        ValueError: alpha, step, sigma or threshold out of range.
    """

    last: Tensor
    """With `reuse`, the signs of the last adversary's gradient, the arrays one after another."""

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        alpha: float = 0.5,
        step: float = 1.0,
        sigma: float | None = 0.1,
        threshold: float = 1.0,
        reuse: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, **options)
        number("alpha", alpha, low=0, high=1)
        number("step", step, low=0)
        if sigma is not None:
            number("sigma", sigma, low=0)
        number("threshold", threshold)
        self.alpha, self.step, self.sigma, self.threshold = alpha, step, sigma, threshold
        self.reuse = reuse
        size = sum(weight.numel() for weight in crossbar.programmed().values()) if reuse else 0
        self.register_buffer("last", torch.zeros(size), persistent=reuse)
        self._used: dict[str, Tensor] = {}

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        with evaluating(self.crossbar):
            adversary = self._adversary(inputs, labels)  # lines 8-10
        noise = self.right_censored_noise(self.sigma, self.threshold)  # line 13
        loss_n = self.cross_entropy(inputs, labels, noise)  # lines 14-15
        with evaluating(self.crossbar):  # last: the pass above updates the statistics that a gradient here needs
            loss_p = self.cross_entropy(inputs, labels, adversary)  # lines 10-11
        return (1 - self.alpha) * loss_n + self.alpha * loss_p  # line 16

    @torch.no_grad()
    def on_after_backward(self) -> None:
        """Keep the signs of the adversary's gradient for the next batch."""
        if self.reuse:
            zero = torch.zeros((), device=self.last.device)
            gradients = [
                zero.expand_as(d) if d.grad is None else sum_over_processes(d.grad) for d in self._used.values()
            ]
            torch.cat([g.sign().flatten() for g in gradients], out=self.last)

    def _adversary(self, inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
        box = self.crossbar.box.scaled(self.step)
        if self.reuse:
            weights = self.crossbar.programmed()
            parts = self.last.split([weight.numel() for weight in weights.values()])
            self._used = box.at(
                {name: part.view_as(w) for (name, w), part in zip(weights.items(), parts, strict=True)}
            )
            return {name: d.requires_grad_() for name, d in self._used.items()}
        cost_p = self.gradient(p2, box.zero(), inputs, labels)
        return box.at({name: -gradient.sign() for name, gradient in cost_p.items()})
