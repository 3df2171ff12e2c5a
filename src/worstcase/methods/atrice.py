"""A-TRICE: adversarial training with right-censored Gaussian noise (Algorithm 3)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from worstcase.checks import number
from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.methods.base import Method
from worstcase.objectives import p2
from worstcase.task import Inputs


class ATrice(Method):
    """A-TRICE as printed (Algorithm 3): a one-step adversary and a noise sample in each update.

    The two passes of the adversary use batch norm's running statistics; the pass with noise is the one
    that updates them. Cost: 3 forward and 3 backward a step.

    Args:
        crossbar: the network with its th_g.
        alpha: weight of the adversarial loss, 0..1; 1 is single-step adversarial training.
        step: s, the adversary's step in units of each array's bound.
        sigma: sigma_t of Eq. 11 in units of the full scale, 0 or more; None: that of the devices, see
            `Crossbar.sigma`.
        threshold: th of Eq. 11 in units of sigma_t.
        options: see `Method`.

    Raises:
        ValueError: alpha, step, sigma or threshold out of range.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        alpha: float = 0.5,
        step: float = 1.0,
        sigma: float | None = 0.1,
        threshold: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(crossbar, **options)
        number("alpha", alpha, low=0, high=1)
        number("step", step, low=0)
        if sigma is not None:
            number("sigma", sigma, low=0)
        number("threshold", threshold)
        self.alpha, self.step, self.sigma, self.threshold = alpha, step, sigma, threshold

    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        with evaluating(self.crossbar):
            adversary = self._adversary(inputs, labels)  # lines 8-10
            loss_p = self.cross_entropy(inputs, labels, adversary)  # lines 10-11
        noise = self.right_censored_noise(self.sigma, self.threshold)  # line 13
        loss_n = self.cross_entropy(inputs, labels, noise)  # lines 14-15
        return (1 - self.alpha) * loss_n + self.alpha * loss_p  # line 16

    def _adversary(self, inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
        box = self.crossbar.box.scaled(self.step)
        cost_p = self.gradient(p2, box.zero(), inputs, labels)
        return box.at({name: -gradient.sign() for name, gradient in cost_p.items()})
