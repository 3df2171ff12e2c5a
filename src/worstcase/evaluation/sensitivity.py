"""Which weights the worst case depends on: attacks on single layers, or on some of the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from worstcase.attacks import AttackResult, Ensemble
from worstcase.attacks.passes import accuracy, gradient_over
from worstcase.batches import Loader
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.objectives import margin
from worstcase.progress import progress_bar

BUDGET = 20.0
"""Passes of each attack."""
SHARES = (0.001, 0.01, 0.03, 0.1, 0.3)


def damage_by_layer(
    crossbar: Crossbar,
    loader: Loader,
    perturbation: Perturbation,
    *,
    budget: float = BUDGET,
    progress: bool = True,
) -> dict[str, dict[str, float]]:
    """How far each array alone can lower the accuracy, with the others programmed exactly.

    Returns:
        By array: ``accuracy_of_its_part``, the accuracy with only its part of the perturbation; and
        ``lowest_alone``, the lowest of that and of what the ensemble finds when only this array may move.

    Cost: at most ``budget`` passes per array.
    """
    damage, box = {}, crossbar.box
    with progress_bar("one layer at a time", enabled=progress) as show:
        lowest = 1.0
        for name in perturbation:
            part = box.restricted_to({name: 1.0})
            found = _attack(crossbar, loader, part, part.project(perturbation), budget)
            damage[name] = {
                "accuracy_of_its_part": found.history[1]["accuracy"],
                "lowest_alone": found.accuracy,
            }
            lowest = min(lowest, found.accuracy)
            show(len(damage) * budget, len(perturbation) * budget, lowest)
    return damage


def selective_write_verify(
    crossbar: Crossbar,
    loader: Loader,
    perturbation: Perturbation,
    *,
    shares: Sequence[float] = SHARES,
    budget: float = BUDGET,
    progress: bool = True,
) -> list[dict[str, float]]:
    """How far the most important weights alone lower the accuracy, and how far all others do if these are exact.

    `importance` ranks the weights. Sets are nested, and the stronger of two perturbations counts beside what the
    attack finds: the given one's part, and that of the next smaller set. So with more movable weights the accuracy
    is never higher.

    Args:
        shares: of the weights, 0..1, in rising order.

    Returns:
        For each share: ``share``, the number of ``weights``, and the lowest accuracies that the ensemble finds
        when ``only_these_move``, and when ``all_others_move`` while these are exact.

    Cost: 2 passes for the importance, and at most 2 (``budget`` + 1) per share.
    """
    order = torch.cat([i.flatten() for i in importance(crossbar, loader).values()])
    order = order.argsort(descending=True, stable=True)
    numbers = [max(1, round(share * len(order))) for share in shares]
    box = crossbar.box
    only = (_part(box, order[:number]) for number in numbers)
    others = (_part(box, order[number:]) for number in reversed(numbers))
    lowest: list[float] = []
    with progress_bar("selective write-verify", enabled=progress) as show:
        for growing in (only, others):
            for accuracy in _nested(crossbar, loader, growing, perturbation, budget):
                lowest.append(accuracy)
                show(len(lowest) * budget, 2 * len(numbers) * budget, min(lowest))
    return [
        {"share": share, "weights": number, "only_these_move": of_these, "all_others_move": of_others}
        for share, number, of_these, of_others in zip(shares, numbers, lowest, reversed(lowest), strict=False)
    ]


def importance(crossbar: Crossbar, loader: Loader) -> dict[str, Tensor]:
    """How far each weight moves the mean margin of the logits when it is at its bound, to first order.

    This is the absolute gradient, at the programmed weights, of the mean over the decisions of
    O_t - max over i != t of O_i, times the end of the weight's box that lowers it: by array, in units of logits, 0
    or more. A hinge or probabilities in place of the margin would ignore confident answers.

    Cost: 2 passes.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> importance(crossbar, [(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))])
        {'weight': tensor([[0.5000, 0.0000],
                [0.5000, 0.0000]])}
    """
    box = crossbar.box
    total, made = gradient_over(crossbar, loader, margin, box.zero())
    ends = {name: torch.where(g > 0, box.low[name], box.high[name]) for name, g in total.items()}
    return {name: (g / made * ends[name]).abs() for name, g in total.items()}


def _nested(
    crossbar: Crossbar,
    loader: Loader,
    boxes: Iterable[Box],
    perturbation: Perturbation,
    budget: float,
) -> Iterator[float]:
    """The lowest accuracy found in each box. Each box contains the one before."""
    before: AttackResult | None = None
    for box in boxes:
        start = box.project(perturbation)
        if before is not None and before.accuracy < accuracy(crossbar, loader, start):
            start = before.perturbation
        before = _attack(crossbar, loader, box, start, budget)
        yield before.accuracy


def _attack(crossbar: Crossbar, loader: Loader, box: Box, start: Perturbation, budget: float) -> AttackResult:
    """What the ensemble finds in a box in which only some weights may move."""
    return Ensemble(budget=budget)(crossbar, loader, box=box, start=start, progress=False)


def _part(box: Box, places: Tensor) -> Box:
    """The box in which only some weights may move; `places` index all arrays laid end to end."""
    sizes = [weight.numel() for weight in box.weights.values()]
    mask = torch.zeros(sum(sizes), dtype=torch.bool, device=places.device)
    mask[places] = True
    parts = zip(box.weights.items(), mask.split(sizes), strict=True)
    return box.restricted_to({name: part.view_as(weight) for (name, weight), part in parts})
