"""How LWC and the ensemble's members move a perturbation from where they start."""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.chip.crossbar import Perturbation


class SignSteps:
    """Steps of equal size against the sign of the gradients' decaying sum, each array's scaled to mean 1."""

    MOMENTUM = 0.9

    def __init__(self, bound: Perturbation, start: Perturbation) -> None:
        self.bound = bound
        self.perturbation = {name: d.clone() for name, d in start.items()}
        self.momentum = {name: torch.zeros_like(d) for name, d in start.items()}

    def __call__(self, gradient: Perturbation, step: float) -> None:
        for name, d in self.perturbation.items():
            scale = gradient[name].abs().mean().clamp_min(torch.finfo(d.dtype).tiny)
            momentum = self.momentum[name].mul_(self.MOMENTUM).add_(gradient[name].div_(scale))
            d.sub_(momentum.sign().mul_(step * self.bound[name])).clamp_(-self.bound[name], self.bound[name])


class PlainSignSteps(SignSteps):
    """The same without momentum: F-LWC's steps."""

    MOMENTUM = 0.0


class TanhAdam:
    """Adam on v, where the perturbation is bound x tanh(v)."""

    def __init__(self, bound: Perturbation, start: Perturbation) -> None:
        self.bound = bound
        self.v = {name: torch.atanh(0.99 * (d / bound[name]).nan_to_num()) for name, d in start.items()}
        self.adam = torch.optim.Adam(self.v.values(), fused=True)

    @property
    def perturbation(self) -> dict[str, Tensor]:
        return {name: self.bound[name] * v.tanh() for name, v in self.v.items()}

    def __call__(self, gradient: Perturbation, step: float) -> None:
        self.adam.param_groups[0]["lr"] = step
        for name, v in self.v.items():
            scale = gradient[name].abs().mean().clamp_min(torch.finfo(v.dtype).tiny)
            v.grad = gradient[name].div_(scale).mul_(1 - v.tanh().square_())
        self.adam.step()
        self.adam.zero_grad()


class FreeAdam:
    """Adam on the perturbation itself, which may leave its box: LWC's steps in the paper's free form."""

    def __init__(self, bound: Perturbation, start: Perturbation) -> None:
        self.bound = bound
        self.perturbation = {name: d.clone() for name, d in start.items()}
        self.scale = [bound[name].amax().item() for name in start]
        self.adam = torch.optim.Adam([{"params": [d]} for d in self.perturbation.values()], fused=True)

    def __call__(self, gradient: Perturbation, step: float) -> None:
        for group, scale in zip(self.adam.param_groups, self.scale, strict=True):
            group["lr"] = step * scale
        for name, d in self.perturbation.items():
            d.grad = gradient[name]
        self.adam.step()
        self.adam.zero_grad()


class ProjectedAdam(FreeAdam):
    """The same, clamped to the box after each step."""

    def __call__(self, gradient: Perturbation, step: float) -> None:
        super().__call__(gradient, step)
        for name, d in self.perturbation.items():
            d.clamp_(-self.bound[name], self.bound[name])
