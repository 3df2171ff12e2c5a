"""LWC, the paper's Lagrange-based worst-case evaluation (Eq. 10)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from worstcase.attacks.base import Attack
from worstcase.attacks.search import Search
from worstcase.attacks.updates import FreeAdam, ProjectedAdam
from worstcase.batches import Inputs
from worstcase.checks import choice, number, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.objectives import objective as find_objective
from worstcase.task import counts


class LWC(Attack):
    """LWC (Eq. 10): Adam on c x p + L - th_g with the largest c whose result stays within the bound.

    p is averaged over the decisions of the mini-batch and L, the largest absolute deviation or the root mean
    square, is taken in units of the bound, so c and the learning rate mean the same for every network and th_g.
    The history is the trace of c.

    The search starts at the largest c. With ``project="step"`` each iterate is clamped to the box, every c
    is feasible, and the first trial is the answer. With ``project="end"``, the paper's free form, only
    what is scored is clamped; c is bisected on a logarithmic scale for the largest one whose largest absolute
    deviation is at most th_g.

    Args:
        epochs: passes over the reference set in each trial, one Adam update a mini-batch.
        lr: Adam's learning rate in units of each array's bound.
        c_range: the smallest and the largest c.
        trials: values of c tried at most.
        project: ``step`` or ``end``.
        magnitude: L, ``max`` (Eq. 10) or ``rms`` (an option of the authors' code).
        objective: name of p, see `worstcase.objectives`.

    Cost: 3 passes an epoch (forward, backward, scoring) and 1 for the clean accuracy.

    Example:
        >>> from worstcase import Crossbar
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> LWC(epochs=30)(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))]).accuracy
        0.0
    """

    name = "lwc"

    def __init__(
        self,
        *,
        epochs: int = 20,
        lr: float = 0.2,
        c_range: tuple[float, float] = (1e-10, 1e3),
        trials: int = 8,
        project: str = "step",
        magnitude: str = "max",
        objective: str = "p2",
    ) -> None:
        whole("epochs", epochs)
        whole("trials", trials)
        number("lr", lr, above=0, also="in units of the bound")
        low, high = _range_of_c(c_range)
        choice("project", project, ("step", "end"))
        choice("magnitude", magnitude, _MAGNITUDES)
        self.epochs, self.lr, self.c_range = epochs, lr, [low, high]
        self.trials, self.project, self.magnitude, self.objective = trials, project, magnitude, objective
        self._objective = find_objective(objective)

    def expected_passes(self, run: Search) -> float:
        trials = 1 if self.project == "step" else self.trials
        return 1 + 3 * self.epochs * trials

    def search(self, run: Search) -> float | None:
        low, c = self.c_range  # low is taken as feasible, c is the one to try next
        high = math.inf
        accuracy_at_low = None
        for _ in range(self.trials):
            feasible, accuracy = self._trial(run, c)
            if feasible:
                low, accuracy_at_low = c, accuracy
            else:
                high = c
            if high == math.inf or high / low < 1.01:
                break
            c = math.sqrt(low * high)
        return accuracy_at_low

    def _trial(self, run: Search, c: float) -> tuple[bool, float]:
        """Minimise Eq. 10 for one c: whether the result is in the box, and its accuracy when projected."""
        box = run.box
        update = (ProjectedAdam if self.project == "step" else FreeAdam)(box, box.zero())
        perturbation = update.perturbation
        for _ in range(self.epochs):
            for batch in run.batches():
                update(self._gradient_of_eq_10(run, c, perturbation, batch), self.lr)
            feasible = box.contains(perturbation)
            scored = perturbation if feasible else box.project(perturbation)
            accuracy = run.score(scored, c=c, magnitude=largest(perturbation, box).item())
        return feasible, accuracy

    def _gradient_of_eq_10(
        self, run: Search, c: float, perturbation: Perturbation, batch: tuple[Inputs, Tensor]
    ) -> Perturbation:
        """Over one mini-batch; 0 for weights that may not deviate."""
        gradient = run.gradient(self._objective, perturbation, [batch])
        labels = batch[1]
        made = max(1, len(labels) if labels.ndim == 1 else int(counts(labels, run.classes).sum()))
        of_magnitude = _gradient(_MAGNITUDES[self.magnitude], perturbation, run.box)
        for name, g in gradient.items():
            gradient[name] = g = g.to(perturbation[name].dtype)
            g.mul_(c / made).add_(of_magnitude.pop(name))
            if run.box.half_width[name].ndim:
                g *= run.box.half_width[name] > 0
        return gradient


def _range_of_c(c_range: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = c_range
        number("c", low, above=0)
        number("c", high, above=low)
    except (TypeError, ValueError):
        raise ValueError(f"c_range={c_range}: must be two finite numbers above 0, the smaller first") from None
    return float(low), float(high)


def largest(perturbation: Perturbation, box: Box) -> Tensor:
    """The largest absolute deviation in units of the farther end of its box; weights without one do not count."""
    peaks = [d.abs().amax() / end for d, end in _evened(perturbation, box)]
    return torch.stack(peaks).amax()


def root_mean_square(perturbation: Perturbation, box: Box) -> Tensor:
    """The root mean square over all weights of the deviation in the same units."""
    relative = [(d / end).flatten() for d, end in _evened(perturbation, box)]
    return torch.linalg.vector_norm(torch.cat(relative)) / math.sqrt(sum(r.numel() for r in relative))


def _evened(perturbation: Perturbation, box: Box) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each array that may deviate: its farthest end, and d as if that were the end of each of its weights."""
    for name, d in perturbation.items():
        if name in box.movable:
            reach = box.reach[name]
            farthest = reach.amax()
            yield d * torch.where(reach > 0, farthest / reach, 0) if reach.ndim else d, farthest


def _gradient(
    magnitude: Callable[[Perturbation, Box], Tensor], perturbation: Perturbation, box: Box
) -> dict[str, Tensor]:
    leaves = {name: d.detach().requires_grad_() for name, d in perturbation.items()}
    gradients = torch.autograd.grad(magnitude(leaves, box), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, gradients, strict=True))


_MAGNITUDES = {"max": largest, "rms": root_mean_square}
