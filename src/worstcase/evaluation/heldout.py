"""Whether a chip that an attack found is also bad on data that the attack never saw."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from worstcase.attacks.base import Attack
from worstcase.attacks.passes import accuracy
from worstcase.chip.crossbar import Crossbar
from worstcase.task import Inputs, Loader, inputs_and_labels, taken


def attack_one_half(
    attack: Attack,
    crossbar: Crossbar,
    loader: Loader,
    *,
    seed: int = 0,
    progress: bool = True,
    search_dtype: str | None = None,
) -> tuple[float, float]:
    """Attack every second sample of a reference set (in fixed order), and score the chip found on the others.

    Returns:
        The accuracies 0..1 on the attacked half and on the held-out one.

    Example:
        >>> import torch
        >>> from worstcase.attacks import FLWC
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> attack_one_half(FLWC(), crossbar, [(torch.tensor([[1.0, 0.9], [5.0, 0.0]]), torch.tensor([0, 0]))])
        (0.0, 1.0)
    """
    found = attack(crossbar, Half(loader, 0), seed=seed, progress=progress, search_dtype=search_dtype)
    return found.accuracy, accuracy(crossbar, Half(loader, 1), found.perturbation)


class Half:
    """Every second sample, starting with the first (0) or the second (1)."""

    def __init__(self, loader: Loader, first: int) -> None:
        self.loader, self.first = loader, first

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor]]:
        seen = 0
        for batch in self.loader:
            inputs, labels = inputs_and_labels(batch)
            first = (self.first - seen) % 2
            seen += len(labels)
            if len(labels) > first:
                yield taken(inputs, slice(first, None, 2)), labels[first::2]
