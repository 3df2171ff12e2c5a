"""How much each weight's bound matters: what pulses are shared out by, ours and what others rank weights by.

Each takes a crossbar and a reference set, and returns for each array a tensor of the weight's shape, 0 or more, of
which only ratios matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.attacks.passes import gradient_over, on_its_device
from worstcase.batches import Loader
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.objectives import cross_entropy
from worstcase.seeds import seeded
from worstcase.task import decisions

DRAWS = 4  # of the estimate of the second derivative


def by_gradient(crossbar: Crossbar, loader: Loader, *, at: Perturbation | None = None) -> dict[str, Tensor]:
    """The change of log Z_t to first order where a weight deviates by its full scale: |gradient| x full scale.

    Args:
        crossbar: the network.
        loader: the reference set; the gradient is that of the sum over its decisions, as one chip serves them all.
        at: the chip at which it is taken; None: as programmed.

    Cost: one forward and one backward pass.
    """
    total, _ = gradient_over(crossbar, loader, cross_entropy, at or crossbar.box.zero())
    scales = crossbar.full_scales()
    return {name: g.abs() * scales[name].to(g.dtype) for name, g in total.items()}


def by_second_derivative(crossbar: Crossbar, loader: Loader, *, seed: int = 0) -> dict[str, Tensor]:
    """SWIM's rank: the second derivative of the cross-entropy times the squared weight (Yan et al., DAC 2022).

    The derivative is estimated by products of the Hessian with random signs (Hutchinson), and its absolute value
    taken.

    Cost: `DRAWS` times about four forward passes.
    """
    generator = seeded(seed, "second derivative", device=next(crossbar.parameters()).device)
    with evaluating(crossbar), torch.inference_mode(False), torch.enable_grad():
        zero, total = crossbar.box.zero(), crossbar.box.zero()
        for inputs, labels in on_its_device(crossbar, loader):
            leaves = {name: d.clone().requires_grad_() for name, d in zero.items()}
            logits, answers = decisions(crossbar(inputs, leaves), labels)
            loss = -cross_entropy(logits, answers).sum()
            first = torch.autograd.grad(loss, list(leaves.values()), create_graph=True, materialize_grads=True)
            for _ in range(DRAWS):
                signs = [torch.randint(2, g.shape, generator=generator, device=g.device) * 2.0 - 1 for g in first]
                along = torch.stack([(g * s).sum() for g, s in zip(first, signs, strict=True)]).sum()
                second = torch.autograd.grad(
                    along, list(leaves.values()), retain_graph=True, materialize_grads=True
                )
                for name, s, product in zip(leaves, signs, second, strict=True):
                    total[name] += s * product / DRAWS
    weights = crossbar.programmed()
    return {name: h.abs() * weights[name].detach().square() for name, h in total.items()}


def by_magnitude(crossbar: Crossbar, loader: Loader) -> dict[str, Tensor]:
    """The absolute weight."""
    return {name: weight.detach().abs() for name, weight in crossbar.programmed().items()}


def at_random(crossbar: Crossbar, loader: Loader, *, seed: int = 0) -> dict[str, Tensor]:
    """A number between 0 and 1 for each weight."""
    generator = seeded(seed, "random sensitivity")
    weights = crossbar.programmed()
    return {name: torch.rand(w.shape, generator=generator).to(w.device) for name, w in weights.items()}


def first_and_last(crossbar: Crossbar, loader: Loader) -> dict[str, Tensor]:
    """The same for all weights but those of the first and the last array, which count ten times as much."""
    weights = crossbar.programmed()
    ends = {next(iter(weights)), next(reversed(weights))}
    return {name: torch.full_like(w.detach(), 10.0 if name in ends else 1.0) for name, w in weights.items()}


def the_same(crossbar: Crossbar, loader: Loader) -> dict[str, Tensor]:
    """The same for all weights: one th_g."""
    return {name: torch.ones_like(w.detach()) for name, w in crossbar.programmed().items()}


def of_each_array(sensitivity: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean over each array, so that all its weights get one bound."""
    return {name: one.mean().expand_as(one) for name, one in sensitivity.items()}
