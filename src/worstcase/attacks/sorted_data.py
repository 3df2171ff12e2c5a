"""Whether mini-batches have fewer classes than the whole: pairs of labels tell, for batches of any size."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairs:
    """Counts pairs of labels in each of some batches, and which of them are of one class."""

    def __init__(self) -> None:
        self._all = self._alike = 0

    def add(self, squares: int, labels: int) -> None:
        """A batch, by the sum over its classes of the squared number of labels."""
        self._alike += squares - labels
        self._all += labels * labels - labels

    @property
    def alike(self) -> float:
        return self._alike / self._all if self._all else 0.0


def by_class(logits: Tensor, of: Tensor) -> Tensor:
    """How many there are of each class."""
    counts = torch.zeros(logits.shape[1], dtype=torch.long, device=logits.device)
    return counts.index_add_(0, of, torch.ones_like(of))
