"""Whether a chip that an attack found is also bad on data that the attack never saw."""

from __future__ import annotations

from worstcase.attacks.base import Attack
from worstcase.attacks.half import Half
from worstcase.attacks.passes import accuracy
from worstcase.batches import Loader
from worstcase.chip.crossbar import Crossbar


def attack_one_half(
    attack: Attack,
    crossbar: Crossbar,
    loader: Loader,
    *,
    seed: int = 0,
    progress: bool = True,
    search_dtype: str | None = None,
) -> tuple[float, float]:
    """Attack one half of the samples of a reference set (in fixed order), and score the chip found on the other.

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
