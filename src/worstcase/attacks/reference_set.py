"""The reference set: the same data in each pass, in any order, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from worstcase.batches import Loader, inputs_and_labels, tensors_in

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
        self._digest: tuple[int, int] | None = None

    @property
    def digest(self) -> str:
        """Of the samples of its first pass, in any order."""
        samples, total = self._digest or (0, 0)
        return f"{samples} {total:016x}"

    def __iter__(self) -> Iterator[Any]:
        if not self._left:
            yield from self.loader
            return
        samples, total = 0, 0
        for batch in self.loader:
            inputs, labels = inputs_and_labels(batch)
            samples += len(labels)
            total = (total + _digest([*tensors_in(inputs), labels])) % 2**64
            yield batch
        before, self._digest = self._digest, (samples, total)
        self._left -= 1
        if before not in (None, self._digest):
            raise ValueError(
                "the reference set changes from pass to pass (random augmentation, shuffling that drops the last "
                "batch, or shuffling with heldout=True?): attacks are scored on the data that they search with; "
                "give data that stay the same"
            )


def _digest(tensors: list[Tensor]) -> int:
    """A digest of a batch's samples, to the bit, in any order; numbers at the end that are 0 do not count."""
    of_sample = torch.zeros(len(tensors[-1]), dtype=torch.long)
    with torch.no_grad():
        for t in tensors:
            if t.ndim and len(t) == len(tensors[-1]):
                words = _words(t)
                of_sample = mixed(of_sample + words @ (mixed(torch.arange(1, words.shape[1] + 1)) | 1))
        return int(of_sample.sum())


def _words(t: Tensor) -> Tensor:
    """The bytes of each sample as whole numbers: of small ones, since a product of large ones loses bits."""
    t = t.detach().cpu().to_dense().resolve_conj().contiguous()
    flat = t.flatten(1) if t.ndim > 1 else t[:, None]
    return flat.view({1: torch.int8, 2: torch.int16}.get(t.element_size(), torch.int32)).long()


def mixed(whole: Tensor) -> Tensor:
    """Pseudo-random int64 of int64, each of another; 0 of 0 (the end of SplitMix64, by Steele et al., 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 2**64 + 1)):
        whole = (whole ^ (whole >> shift & 2 ** (64 - shift) - 1)) * (factor - 2**64)
    return whole
