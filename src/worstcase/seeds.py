"""Random numbers that depend only on the seed and the place in the training, so a resumed run draws the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*parts: object) -> int:
    """A seed computed from the parts. Its low 32 bits, all that PyTorch's CPU generator uses, are well mixed.

    Example:
        >>> derived_seed(0, "epoch", 3) == derived_seed(0, "epoch", 3) != derived_seed(0, "epoch", 4)
        True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


def seeded(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator, seeded by the parts."""
    return torch.Generator(device).manual_seed(derived_seed(*parts))


@contextmanager
def drawing_by(*parts: object) -> Iterator[None]:
    """Within a block, seed PyTorch's default CPU generator by the parts; then restore its state."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derived_seed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)
