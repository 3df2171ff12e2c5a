"""The gradient that all attacks and training methods follow."""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.batches import Inputs
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.objectives import Objective
from worstcase.task import decisions


def gradient(
    crossbar: Crossbar, objective: Objective, perturbation: Perturbation, inputs: Inputs, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The gradient in a perturbation of an objective, summed over the decisions of a batch.

    Nothing else gets a gradient. An array that the network did not use has a gradient of 0.

    Args:
        crossbar: the network, in the mode that it is to be run in.
        objective: of logits and labels, see `worstcase.objectives`.
        perturbation: where the gradient is taken.
        inputs: of a batch.
        labels: of the batch.

    Returns:
        The gradient, by array; the logits (M, C) at the perturbation, detached, and labels (M,) of the decisions.

    Example:
        >>> from worstcase.objectives import margin
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.1)
        >>> images, labels = torch.tensor([[3.0, 5.0]]), torch.tensor([0])
        >>> gradient(crossbar, margin, crossbar.box.zero(), images, labels)[0]
        {'weight': tensor([[ 3.,  5.],
                [-3., -5.]])}
    """
    leaves = {name: d.detach().requires_grad_() for name, d in perturbation.items()}
    logits, answers = decisions(crossbar(inputs, leaves), labels)
    loss = objective(logits, answers).sum()
    if not loss.requires_grad:  # the network cuts gradients everywhere
        return {name: torch.zeros_like(d) for name, d in leaves.items()}, logits.detach(), answers
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), logits.detach(), answers
