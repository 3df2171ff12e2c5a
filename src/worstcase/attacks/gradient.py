"""The gradient that all attacks and training methods follow."""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.objectives import Objective


def gradient(
    crossbar: Crossbar, objective: Objective, perturbation: Perturbation, images: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient in a perturbation of an objective, summed over a batch.

    Nothing else gets a gradient. An array that the network did not use has a gradient of 0.

    Args:
        crossbar: the network, in the mode that it is to be run in.
        objective: of logits and labels, see `worstcase.objectives`.
        perturbation: where the gradient is taken.
        images: a batch of inputs.
        labels: (N,), the class of each.

    Returns:
        The gradient, by array, and the logits at the perturbation, detached.

    Example:
        >>> from worstcase.objectives import margin
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.1)
        >>> images, labels = torch.tensor([[3.0, 5.0]]), torch.tensor([0])
        >>> gradient(crossbar, margin, crossbar.box.zero(), images, labels)[0]
        {'weight': tensor([[ 3.,  5.],
                [-3., -5.]])}
    """
    leaves = {name: d.detach().requires_grad_() for name, d in perturbation.items()}
    logits = crossbar(images, leaves)
    loss = objective(logits, labels).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True)), logits.detach()
