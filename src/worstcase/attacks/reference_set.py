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
        ValueError: on going through it, that the data are others than in the pass before, or that an input that
            all samples share happens to be as long as a batch.

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
        beside = _Beside()
        for batch in self.loader:
            inputs, labels = inputs_and_labels(batch)
            beside.see(tensors_in(inputs), len(labels))
            samples += len(labels)
            total = (total + _digest([*tensors_in(inputs), labels])) % 2**64
            yield batch
        beside.check()
        before, self._digest = self._digest, (samples, total)
        self._left -= 1
        if before not in (None, self._digest):
            raise ValueError(
                "the reference set changes from pass to pass (random augmentation, shuffling that drops the last "
                "batch, or shuffling with heldout=True?): attacks are scored on the data that they search with; "
                "give data that stay the same"
            )


class _Beside:
    """Looks for inputs that all samples share, such as positions, in batches of as many samples by chance."""

    def __init__(self) -> None:
        self._batches = 0
        self._first: list[Tensor] = []
        self._as_long: list[set[bool]] = []
        self._same: list[bool] = []

    def see(self, tensors: list[Tensor], samples: int) -> None:
        """A batch's inputs."""
        if not self._batches:
            self._first, self._same, self._as_long = tensors, [True for _ in tensors], [set() for _ in tensors]
        self._batches += 1
        for i, t in enumerate(tensors[: len(self._first)]):
            if samples > 1:
                self._as_long[i].add(t.ndim > 0 and len(t) == samples)
            self._same[i] = self._same[i] and _equal(t, self._first[i])

    def check(self) -> None:
        for i, t in enumerate(self._first[1:], 1):
            repeated = self._batches > 1 and self._same[i] and not self._same[0]
            shared = self._as_long[i] == {True} and repeated and not _equal(t, t[:1].expand_as(t))
            if len(self._as_long[i]) > 1 or shared:
                raise ValueError(
                    f"an input of shape {tuple(t.shape)} seems to be one for all samples, but has as many entries "
                    "as a batch has samples, so it would be cut with them: give batches of another size"
                )


def _equal(one: Tensor, other: Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.device == other.device
    return one is other or (same_kind and torch.equal(one.to_dense(), other.to_dense()))


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
