"""A half of a reference set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from worstcase.attacks.reference_set import mixed
from worstcase.batches import Inputs, Loader, inputs_and_labels, taken


class Half:
    """Of each two samples in a row one, by a pseudo-random bit: the same in every pass.

    So the halves are of one size, and whatever has a pattern, such as classes that alternate, is in both.

    Args:
        loader: the whole.
        which: 0, or 1 for the other half.

    Example:
        >>> data = [(torch.arange(10), torch.arange(10))]
        >>> [labels.tolist() for which in (0, 1) for _, labels in Half(data, which)]
        [[0, 2, 5, 6, 9], [1, 3, 4, 7, 8]]
    """

    def __init__(self, loader: Loader, which: int) -> None:
        self.loader, self.which = loader, which

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        seen = 0
        for batch in self.loader:
            inputs, labels = inputs_and_labels(batch)
            sample = torch.arange(seen, seen + len(labels))
            seen += len(labels)
            half = sample % 2 ^ (mixed(sample // 2) < 0).long()
            (places,) = torch.where(half == self.which)
            if len(places):
                yield taken(inputs, places), labels[places]
