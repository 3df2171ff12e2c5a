"""The mini-batches of an attack that goes through the reference set in an order of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from worstcase.attacks.search import Search
from worstcase.batches import Inputs, can_be_joined, joined, taken, tensors_in

PIECE = 128  # samples of a mini-batch at most
BUFFER = 2**28  # bytes of inputs that are shuffled together
SHARE = 1 / 5  # of the reference set that a step sees at most, if that is a mini-batch or more


class Size(NamedTuple):
    """Of a reference set."""

    samples: int
    mini_batches: int


class MiniBatches:
    """Shuffled mini-batches of a search, without end.

    A step of so many samples is made of several, since small ones are quicker on a CPU and need less memory. All
    samples are shuffled together, or as many at a time as the buffer holds.
    """

    def __init__(self, run: Search, generator: torch.Generator) -> None:
        self._run, self._generator = run, generator
        self._stream = self._endless()

    def take(self, samples: int) -> list[tuple[Inputs, Tensor]]:
        """The next, of about so many samples together."""
        return list(islice(self._stream, _pieces(self._run, samples)))

    def _endless(self) -> Iterator[tuple[Inputs, Tensor]]:
        while True:
            held: list[tuple[Inputs, Tensor]] = []
            for batch in self._run.batches_beside_passes():
                size = sum(t.numel() * t.element_size() for x, _ in held for t in tensors_in(x))
                if held and (size >= BUFFER or not can_be_joined(held[0], batch)):
                    yield from self._shuffled(held)
                    held = []
                held.append(batch)
            yield from self._shuffled(held)

    def _shuffled(self, batches: list[tuple[Inputs, Tensor]]) -> Iterator[tuple[Inputs, Tensor]]:
        inputs, labels = joined(batches)
        batches.clear()  # frees them
        order = torch.randperm(len(labels), generator=self._generator, device=self._run.device).to(labels.device)
        for piece in order.tensor_split(math.ceil(len(labels) / _piece(self._run))):
            yield taken(inputs, piece), labels[piece]


def passes_of_step(run: Search | Size, samples: int) -> float:
    """The passes of a forward and a backward over mini-batches of about so many samples together, at most."""
    return 2 * _pieces(run, samples) * _piece(run) / run.samples


def _piece(run: Search | Size) -> int:
    """Samples of a mini-batch: not more than the user's own, whose size the memory may ask for."""
    return min(PIECE, math.ceil(run.samples / run.mini_batches))


def _pieces(run: Search | Size, samples: int) -> int:
    return max(1, int(min(samples, SHARE * run.samples) / _piece(run)))
