"""The reference set: the same data in each pass, in any order, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from worstcase.task import Loader, inputs_and_labels, tensors_in

PASSES = 3  # that are compared: what changes at random differs at once; one of what lies in memory and stays


class ReferenceSet:
    """A loader whose first passes are compared.

    Raises:
        ValueError: on going through it, that the data are others than in the pass before.

    Example:
        >>> reference = ReferenceSet([(torch.eye(2), torch.tensor([0, 1]))])
        >>> [len(labels) for _ in range(2) for _, labels in reference]
        [2, 2]
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self._left = 1 if isinstance(loader, list | tuple) else PASSES
        self._digest: tuple[int, float] | None = None

    @property
    def digest(self) -> str:
        """Of the samples of its first pass, in any order; the same on machines whose rounding differs."""
        samples, total = self._digest or (0, 0.0)
        return f"{samples} {total:.6g}"

    def __iter__(self) -> Iterator[Any]:
        if not self._left:
            yield from self.loader
            return
        samples, total = 0, 0.0
        for batch in self.loader:
            inputs, labels = inputs_and_labels(batch)
            samples += len(labels)
            total += _digest([*tensors_in(inputs), labels])
            yield batch
        before, self._digest = self._digest, (samples, total)
        self._left -= 1
        if before and (samples != before[0] or abs(total - before[1]) > 1e-9 * abs(total)):
            raise ValueError(
                "the reference set changes from pass to pass (random augmentation, shuffling that drops the last "
                "batch, or shuffling with heldout=True?): attacks are scored on the data that they search with; "
                "give data that stay the same"
            )


def _digest(tensors: list[Tensor]) -> float:
    """A digest of a batch's samples that does not depend on their order."""
    with torch.no_grad():
        by_sample = sum(_weighted_sum(t) for t in tensors if t.ndim and len(t) == len(tensors[-1]))
        return float((by_sample * by_sample).sum()) if isinstance(by_sample, Tensor) else 0.0


def _weighted_sum(t: Tensor) -> Tensor:
    """A number for each sample: a weighted sum of its values."""
    flat = t.detach().flatten(1) if t.ndim > 1 else t.detach()[:, None]
    flat = flat.to("cpu", torch.double).nan_to_num(0.5, 2.5, 3.5)
    return flat @ torch.arange(1, flat.shape[1] + 1, dtype=torch.double).sin()
