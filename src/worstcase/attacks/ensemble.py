"""The ensemble: diverse attacks that share a budget, so that no single one's blindness passes for safety."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worstcase.attacks.base import Attack, Search
from worstcase.crossbar import Perturbation
from worstcase.objectives import Objective, cross_entropy, dlr, into_class, margin, p2, p6, sigmoid_margin
from worstcase.variation import vertex

STEPS = 32  # of a member in the first round; each round doubles them
PIECE = 128  # samples of a mini-batch at most; larger ones are split
SAMPLES = 512  # of a step at most; the first round takes two pieces, each round doubles them
CLASSES = 32  # tried at most as the one class that everything is pushed into
FLIPS = 50  # tries a weight, for networks of at most so many weights
STEP_FROM_WORST = 0.5  # of a member's first step


class Ensemble(Attack):
    """Attacks that differ in objective, update and start, after AutoAttack (Croce and Hein, 2020) for inputs.

    AutoAttack counts a sample as lost if any member flips it. A chip has one perturbation for all samples, so here
    the lowest accuracy of one perturbation counts, and members start from what others found.

    In the first round each member (`MEMBERS`) makes 32 steps from zero, of 256 samples each. Each later round
    keeps the better half (not those that push everything into one class, which cannot win), doubles the steps and
    their samples, and starts from the worst perturbation so far. Two members begin afresh instead, from zero with
    the second round's more steps and from random vertices later: from where everything is pushed into one class it
    is hard to go on. `FINISH` is always kept and comes last. As in APGD, a member's step is halved when it did not
    lower the accuracy from the worst so far. Within a run steps decay to zero; its end is scored over
    the whole reference set. Networks of a few weights end with single weights flipped one by one.

    Args:
        rounds: how many, if there is no budget.
        budget: passes over the reference set, at most; rounds go on until it is spent.

    Cost: a run takes 2 passes for each time that its steps go through the reference set, and 1 for its score.
    Memory, in sizes of the perturbed weights: the worst and the current perturbation, the chip's weights, the
    gradient, the momentum, and copies of one layer's: at the peak 5.6 with VGG-16, of whose weights one layer has
    0.74; 6.2 with Adam.

    Example:
        >>> from worstcase import Crossbar
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> Ensemble()(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))]).accuracy
        0.0
    """

    name = "ensemble"

    def __init__(self, *, rounds: int = 3, budget: float | None = None) -> None:
        if rounds < 1:
            raise ValueError(f"rounds={rounds}: must be 1 or more")
        if budget is not None and not 1 <= budget < math.inf:
            raise ValueError(f"budget={budget}: must be 1 or more, in passes over the reference set")
        self.rounds, self.budget = rounds, budget

    def expected_passes(self, run: Search) -> float:
        if self.budget is not None:
            return self.budget
        passes = 1 + 3 * min(run.classes, CLASSES) / _pieces(run)
        kept = len(MEMBERS)
        for round_ in range(self.rounds):
            passes += kept * (1 + 2 * STEPS * 2**round_ * _pieces_a_step(run, round_) / _pieces(run))
            kept = _better_half(kept)
        weights = run.weights
        return passes + (FLIPS * weights if weights <= FLIPS else 0)

    def search(self, run: Search) -> None:
        budget = self.expected_passes(run)
        batches = _endless(run)
        generator = torch.Generator(run.device).manual_seed(run.seed)
        members = [member for member in MEMBERS if run.classes >= member.classes]
        found: dict[Member, dict[str, Any]] = {
            m: {"member": m.name, "accuracy": None, "lowest": None, "passes": 0.0} for m in members
        }
        run.members = list(found.values())
        step = {member: member.step for member in members}
        targets = _attractors(run, *next(batches))
        for round_ in range(self.rounds) if self.budget is None else count():
            a_step = _pieces_a_step(run, round_)
            for member in members:
                affordable = (budget - run.passes - 1) * _pieces(run) / (2 * a_step)
                steps = min(STEPS * 2**round_, math.floor(affordable))
                if steps < 1 or run.worst_accuracy == 0:
                    return
                from_worst = round_ > 0 and not member.afresh
                before = run.passes, run.worst_accuracy
                update = member.update(run.bound, _start(run, member, round_, generator))
                first_step = step[member] * (STEP_FROM_WORST if from_worst else 1)
                for done in range(steps):
                    left = 1 - done / steps
                    objective = member.objective(left, targets)
                    update(
                        _gradient(run, objective, update.perturbation, islice(batches, a_step)),
                        first_step * (left if member.decays else 1),
                    )
                accuracy = run.score(update.perturbation, member=member.name)
                result = found[member]
                if round_ == 0:
                    result["accuracy"] = result["lowest"] = accuracy
                result["lowest"] = min(result["lowest"], accuracy)
                result["passes"] += run.passes - before[0]
                if from_worst and accuracy >= before[1]:
                    step[member] /= 2
            others = [m for m in members if m.can_win and m is not FINISH]
            others.sort(key=lambda m: found[m]["lowest"])
            members = [*others[: _better_half(len(members)) - 1], FINISH]
        if run.weights <= FLIPS:
            _flip_weights(run, budget, generator)


def _start(run: Search, member: Member, round_: int, generator: torch.Generator) -> Perturbation:
    if round_ == 0 or (round_ == 1 and member.afresh):
        return run.crossbar.zero_perturbation()
    return vertex(run.worst, run.bound, generator) if member.afresh else run.worst


def _better_half(members: int) -> int:
    return max(2, math.ceil(members / 2))


def _pieces(run: Search) -> int:
    return max(run.mini_batches, math.ceil(run.samples / PIECE))


def _pieces_a_step(run: Search, round_: int) -> int:
    samples = min(PIECE * 2 ** (round_ + 1), SAMPLES, run.samples / 8)
    return max(1, math.floor(samples * _pieces(run) / run.samples))


def _gradient(
    run: Search, objective: Objective, perturbation: Perturbation, batches: Iterable[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The gradient of the objective's sum over some mini-batches."""
    total: dict[str, Tensor] = {}
    for images, labels in batches:
        for name, g in run.gradient(objective, perturbation, images, labels).items():
            total[name] = total[name].add_(g) if name in total else g
    return total


def _attractors(run: Search, images: Tensor, labels: Tensor) -> list[int]:
    """Classes, those first into which one sign step of the whole bound pushes a mini-batch furthest.

    Of many classes, only those with the largest mean logits are tried.
    """
    zero = run.crossbar.zero_perturbation()
    with torch.no_grad():
        likely = run.crossbar(images, zero).mean(0).argsort(descending=True)[:CLASSES].tolist()
    distance = {}
    for target in likely:
        objective = partial(into_class, target=target)
        gradient = run.gradient(objective, zero, images, labels)
        pushed = {name: g.sign_().mul_(-run.bound[name]) for name, g in gradient.items()}
        with torch.no_grad():
            distance[target] = objective(run.crossbar(images, pushed), labels).mean().item()
    run.count((1 + len(likely)) * len(images))
    return sorted(likely, key=lambda target: distance[target])


class SignSteps:
    """Steps of equal size against the sign of the gradients' decaying sum, each array's scaled to mean 1."""

    MOMENTUM = 0.9

    def __init__(self, bound: Perturbation, start: Perturbation) -> None:
        self.bound = bound
        self.perturbation = {name: d.clone() for name, d in start.items()}
        self.momentum = {name: torch.zeros_like(d) for name, d in start.items()}

    def __call__(self, gradient: Perturbation, step: float) -> None:
        for name, d in self.perturbation.items():
            scale = gradient[name].abs().mean().clamp_min(torch.finfo(d.dtype).tiny)
            momentum = self.momentum[name].mul_(self.MOMENTUM).add_(gradient[name].div_(scale))
            d.sub_(momentum.sign().mul_(step * self.bound[name])).clamp_(-self.bound[name], self.bound[name])


class PlainSignSteps(SignSteps):
    """The same without momentum: F-LWC's steps."""

    MOMENTUM = 0.0


class TanhAdam:
    """Adam on v, where the perturbation is bound x tanh(v)."""

    def __init__(self, bound: Perturbation, start: Perturbation) -> None:
        self.bound = bound
        self.v = {name: torch.atanh(0.99 * (d / bound[name]).nan_to_num()) for name, d in start.items()}
        self.adam = torch.optim.Adam(self.v.values(), fused=True)

    @property
    def perturbation(self) -> dict[str, Tensor]:
        return {name: self.bound[name] * v.tanh() for name, v in self.v.items()}

    def __call__(self, gradient: Perturbation, step: float) -> None:
        self.adam.param_groups[0]["lr"] = step
        for name, v in self.v.items():
            scale = gradient[name].abs().mean().clamp_min(torch.finfo(v.dtype).tiny)
            v.grad = gradient[name].div_(scale).mul_(1 - v.tanh().square_())
        self.adam.step()
        self.adam.zero_grad()


def _sigmoid(left: float, targets: list[int]) -> Objective:
    """The temperature falls from 0.1 to 0.04 of the mini-batch's mean absolute margin."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        scale = margin(logits.detach(), labels).abs().mean().clamp_min(torch.finfo(logits.dtype).tiny)
        return sigmoid_margin(logits, labels, scale * (0.04 + 0.06 * left))

    return objective


def _then_sigmoid(objective: Objective) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: objective if left > 0.5 else _sigmoid(left, targets)


def _fixed(objective: Objective) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: objective


def _into(rank: int) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: partial(into_class, target=targets[rank])


class Member(NamedTuple):
    """One attack of the ensemble."""

    name: str
    objective: Callable[[float, list[int]], Objective]
    """By the share 1..0 of the steps that is left, and the classes in the order of `_attractors`."""
    update: Callable[[Perturbation, Perturbation], Any] = SignSteps
    step: float = 0.6
    """The first step, in units of the bound (for Adam of tanh's argument)."""
    decays: bool = True
    classes: int = 2
    """What it needs at least."""
    afresh: bool = False
    """Whether it begins anew in each round."""
    can_win: bool = True
    """Whether it can leave fewer right answers than one class has."""


MEMBERS = (
    Member("flwc", _fixed(p2), PlainSignSteps, step=0.1, decays=False),
    Member("sigmoid margin", _sigmoid),
    Member("into one class", _into(0), can_win=False),
    Member("p6", _fixed(p6)),
    Member("cross-entropy", _fixed(cross_entropy)),
    Member("p2, then sigmoid margin", _then_sigmoid(p2), afresh=True),
    Member("dlr", _fixed(dlr), classes=3),
    Member("into another class", _into(1), can_win=False),
    Member("p6, Adam in a tanh box", _fixed(p6), TanhAdam, step=0.3),
    Member("p6, then sigmoid margin", _then_sigmoid(p6), afresh=True),
)
FINISH = MEMBERS[1]
"""The sigmoid is nearest to the accuracy itself: it goes on best from where others stop."""


def _endless(run: Search) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches, again and again, of 128 samples at most."""
    while True:
        for images, labels in run.batches():
            pieces = math.ceil(len(labels) / PIECE)
            yield from zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)


def _flip_weights(run: Search, budget: float, generator: torch.Generator) -> None:
    """Move single weights to the other end of their bounds while that does not raise the accuracy.

    After a round over all weights that lowers nothing, it goes on from a random vertex.
    """
    current = {name: d.clone(memory_format=torch.contiguous_format) for name, d in run.worst.items()}
    accuracy = run.worst_accuracy
    places = [(name, index) for name, d in current.items() for index in range(d.numel())]
    while True:
        before = accuracy
        for place in torch.randperm(len(places), generator=generator, device=run.device).tolist():
            if run.worst_accuracy == 0 or run.passes + 1 > budget:
                return
            name, index = places[place]
            weight, bound = current[name].view(-1), run.bound[name].expand_as(current[name]).flatten()[index]
            old = weight[index].clone()
            weight[index] = -bound if old > 0 else bound
            found = run.score(current, member="flips")
            if found > accuracy:
                weight[index] = old
            else:
                accuracy = found
        if accuracy == before:
            current = vertex(current, run.bound, generator)  # contiguous, as what it is like
            accuracy = run.score(current, member="flips")
