"""What a gradient attack minimises instead of the accuracy, which has no gradient (Eq. 6-8 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor


def p2(logits: Tensor, labels: Tensor) -> Tensor:
    """Hinge on the margin, p2 of Eq. 7: max(O_t - max over i != t of O_i, 0).

    Eq. 8 prints it with the sign reversed; minimising that would raise the accuracy.

    Args:
        logits: (samples, classes), any real numbers.
        labels: (samples,), the true classes.

    Returns:
        (samples,), 0 where the answer is wrong or tied, else the margin.

    Example:
        >>> p2(torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([0, 2]))
        tensor([2., 0.])
    """
    return margin(logits, labels).clamp_min(0)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """O_t - max over i != t of O_i, (samples,): positive where the answer is right."""
    true = labels.unsqueeze(1)
    others = logits.scatter(1, true, -torch.inf)
    return logits.gather(1, true).squeeze(1) - others.amax(1)
