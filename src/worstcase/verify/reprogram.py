"""Which weights of a chip that was read back to program again first, so that it keeps an accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from worstcase.attacks.passes import accuracy as accuracy_of
from worstcase.attacks.passes import gradient_over
from worstcase.batches import Loader
from worstcase.checks import number
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.chip.noise import verified_devices
from worstcase.evaluation.measured import deviations_of
from worstcase.objectives import margin, mean_distance, sigmoid_margin
from worstcase.seeds import seeded

ORDERS = ("gain", "deviation", "random")
ROUNDS = 12  # in which the gain is computed anew
POINTS = 4  # on the way from the chip to the weights as programmed
TEMPERATURE = 0.2  # of the sigmoid, in units of the mean absolute margin


@dataclass(frozen=True)
class Reprogramming:
    """The weights of a chip, in the order in which to program them again."""

    accuracy_before: float
    """Of the chip as it was read back, 0..1."""
    accuracy: float
    """With that many weights programmed again; where `weights` is None, with all of them."""
    weights: int | None
    """How many it takes; 0 where the chip is good, None where not even all suffice."""
    rank: dict[str, Tensor] = field(repr=False)
    """Of each weight, by array: 0 is programmed again first."""

    def mask(self) -> dict[str, Tensor]:
        """Whether a weight is to be programmed again, by array; all of them where not even all suffice."""
        most = sum(rank.numel() for rank in self.rank.values()) if self.weights is None else self.weights
        return {name: rank < most for name, rank in self.rank.items()}


def reprogram(
    crossbar: Crossbar,
    loader: Loader,
    chip: Mapping[str, Any],
    accuracy: float,
    *,
    chip_holds: str = "deviations",
    order: str = "gain",
    training: Loader | None = None,
    seed: int = 0,
) -> Reprogramming:
    """Find how few weights of a chip have to be programmed again until it keeps an accuracy.

    Weights come in the order of what is gained where they lose their deviation: the deviation times the gradient
    of a smooth accuracy, the mean over points on the way from the chip to the weights as programmed. The gain is
    computed anew after each 2^-11, 2^-10, ... of the weights. How many it takes is found by doubling and
    bisection: those are given a fresh deviation, drawn from a Gaussian that write-verify cut off at the box.

    Args:
        crossbar: the network as it was programmed, with the th_g to which weights are verified.
        loader: the reference set whose accuracy is to be kept.
        chip: what was read back, see `worstcase.evaluate`.
        accuracy: to be kept, above 0 and at most 1.
        chip_holds: ``deviations`` or ``weights``, see `worstcase.evaluate`.
        order: ``gain``; or to compare with, ``deviation``, the largest in units of the box first, or ``random``.
        training: batches whose gradients count; None: those of the reference set.
        seed: of what is drawn.

    Raises:
        ValueError: a setting is out of range, weights may be stuck, or the chip does not fit the network.

    Cost: about 100 passes over the training batches, and over the reference set up to two for each doubling
    of the weights, 34 for 100,000 of them.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.01)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> data = [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))]
        >>> found = reprogram(crossbar, data, {"weight": torch.tensor([[-0.9, 0.3], [0.2, 0.0]])}, 1.0)
        >>> found.accuracy_before, found.weights, found.mask()
        (0.0, 1, {'weight': tensor([[ True, False],
                [False, False]])})
    """
    check_crossbar(crossbar)
    number("accuracy", accuracy, above=0, high=1)
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: must be {', '.join(ORDERS)}")
    if crossbar.stuck:
        raise ValueError("weights that may be stuck cannot be programmed again; give a crossbar without stuck")
    d = deviations_of(crossbar, chip, chip_holds)
    box = crossbar.box
    generator = seeded(seed, "programmed again", device=next(crossbar.parameters()).device)
    fresh = verified_devices(crossbar, box)(generator)
    if order == "gain":
        rank = _by_gain(crossbar, loader if training is None else training, d)
    elif order == "deviation":
        rank = _ranks({name: one.abs() for name, one in box.relative(d).items()})
    else:
        rank = _ranks({n: torch.rand(one.shape, generator=generator, device=one.device) for n, one in d.items()})

    def with_again(n: int) -> float:
        again = {name: torch.where(rank[name] < n, fresh[name].to(one.dtype), one) for name, one in d.items()}
        return accuracy_of(crossbar, loader, again)

    before = with_again(0)
    weights = sum(one.numel() for one in d.values())
    if before >= accuracy:
        return Reprogramming(before, before, 0, rank)
    low, high = 0, 1
    while (kept := with_again(high)) < accuracy:
        if high == weights:
            return Reprogramming(before, kept, None, rank)
        low, high = high, min(2 * high, weights)
    while high > low + 1:
        middle = (low + high) // 2
        if (found := with_again(middle)) >= accuracy:
            high, kept = middle, found
        else:
            low = middle
    return Reprogramming(before, kept, high, rank)


def _by_gain(crossbar: Crossbar, loader: Loader, chip: Perturbation) -> dict[str, Tensor]:
    """The rank of each weight by what the accuracy gains, some weights after others, twice as many each time."""
    left = {name: d.clone() for name, d in chip.items()}
    weights = sum(d.numel() for d in left.values())
    rank = {name: torch.full(d.shape, weights, device=d.device) for name, d in left.items()}
    done = 0
    for until in dict.fromkeys(max(1, weights >> halvings) for halvings in reversed(range(ROUNDS))):
        gain = {name: torch.zeros_like(d) for name, d in left.items()}
        for point in range(POINTS):
            there = {name: d * (1 - point / POINTS) for name, d in left.items()}
            for name, g in gradient_over(crossbar, loader, _near_accuracy, there)[0].items():
                gain[name] -= g * left[name]
        best = _ranks({name: torch.where(rank[name] < weights, -torch.inf, one) for name, one in gain.items()})
        for name, place in best.items():
            now = place < until - done
            rank[name] = torch.where(now, done + place, rank[name])
            left[name] = left[name].masked_fill(now, 0)
        done = until
    return rank


def _near_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sigmoid of the margin: decisions that are nearly right, or nearly wrong, count."""
    return sigmoid_margin(logits, labels, TEMPERATURE * mean_distance(margin(logits, labels)))


def _ranks(worth: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The place of each weight among all, those of the largest worth first."""
    flat = torch.cat([one.flatten() for one in worth.values()])
    rank = torch.empty(len(flat), dtype=torch.long, device=flat.device)
    rank[flat.argsort(descending=True, stable=True)] = torch.arange(len(flat), device=flat.device)
    parts = rank.split([one.numel() for one in worth.values()])
    return {name: part.reshape(one.shape) for (name, one), part in zip(worth.items(), parts, strict=True)}
