"""How LWC and the ensemble's members move a perturbation from where they start."""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.chip.box import Box, Perturbation


class MomentumSignSteps:
    """Steps of equal size against the sign of the gradients' decaying sum, each array's scaled to mean 1."""

    MOMENTUM = 0.9

    def __init__(self, box: Box, start: Perturbation) -> None:
        self.box = box
        self.perturbation = {name: d.clone() for name, d in start.items()}
        self.momentum = box.zero()

    def __call__(self, gradient: Perturbation, step: float) -> None:
        for name, momentum in self.momentum.items():
            momentum.mul_(self.MOMENTUM).add_(_scaled_to_mean_1(gradient[name]))
        self.box.step_(
            self.perturbation, self.momentum, {name: step * end for name, end in self.box.reach.items()}
        )


class FreeAdam:
    """Adam on the perturbation itself, which may leave its box: LWC's steps in the paper's free form.

    The perturbation, its gradient and Adam's state are in float32 at least.
    """

    def __init__(self, box: Box, start: Perturbation) -> None:
        self.box = box
        self.perturbation = {name: _wide(d).clone() for name, d in start.items()}
        self.scale = [box.reach[name].amax().item() for name in start]
        reach = {name: box.reach[name].to(d.dtype) for name, d in self.perturbation.items()}
        self.shares = {name: end / end.amax() for name, end in reach.items() if end.ndim and end.any()}
        self.adam = torch.optim.Adam([{"params": [d]} for d in self.perturbation.values()], fused=True)

    def __call__(self, gradient: Perturbation, step: float) -> None:
        for group, scale in zip(self.adam.param_groups, self.scale, strict=True):
            group["lr"] = step * scale
        for name, d in self.perturbation.items():
            d.grad = torch.empty_like(d).copy_(gradient[name])  # a fused step goes by memory
        before = {name: self.perturbation[name].clone() for name in self.shares}
        self.adam.step()
        self.adam.zero_grad()
        for name, d in before.items():  # where the box is narrower, steps are smaller
            self.perturbation[name].copy_(d.lerp(self.perturbation[name], self.shares[name]))


class ProjectedAdam(FreeAdam):
    """The same, projected onto the box after each step."""

    def __call__(self, gradient: Perturbation, step: float) -> None:
        super().__call__(gradient, step)
        self.box.project_(self.perturbation)


def _scaled_to_mean_1(gradient: Tensor) -> Tensor:
    """Divide by the mean absolute value, in place."""
    return gradient.div_(gradient.abs().mean().clamp_min(torch.finfo(gradient.dtype).tiny))


def _wide(d: Tensor) -> Tensor:
    return d.to(torch.promote_types(d.dtype, torch.float32))
