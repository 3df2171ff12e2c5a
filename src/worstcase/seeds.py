"""Randomness that a seed and a place in the training decide, so that a resumed run draws what it would have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """A seed that the parts decide; its low 32 bits, all that PyTorch's CPU generator uses, are well mixed.

    Example:
        >>> derived_seed(0, "epoch", 3) == derived_seed(0, "epoch", 3) != derived_seed(0, "epoch", 4)
        True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def seeded(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own, seeded by the parts."""
    return torch.Generator(device).manual_seed(derived_seed(*parts))


@contextmanager
def drawing_by(*parts: object) -> Iterator[None]:
    """In a block, PyTorch's own generator for the CPU is seeded by the parts; after it, it is as before."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derived_seed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)
