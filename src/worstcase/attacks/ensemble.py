"""The ensemble: diverse attacks that share a budget, so that no single one's blindness passes for safety."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice, product
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from worstcase.attacks.base import Attack, Search
from worstcase.attacks.updates import MomentumSignSteps, ProjectedAdam, SignSteps, TanhAdam
from worstcase.checks import number, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.objectives import Objective, cross_entropy, dlr, into_class, margin, p2, p6, sigmoid_margin
from worstcase.task import Inputs, Loader, decisions, form, joined, split, taken, tensors_in

PIECE = 128  # samples of a mini-batch at most
BUFFER = 2**28  # bytes of inputs that are shuffled together
CLASSES = 32  # tried at most as the one class that everything is pushed into
SHARE = 4  # of a budget one part in so many, at most, is spent on trying them
FLIPS = 50  # tries a weight, for networks of at most so many weights
STEP_OF_FINISH = 0.4  # the first, in units of the bound


@dataclass(frozen=True)
class Schedule:
    """The number of steps of each part of the ensemble, and of samples in a step."""

    steps: int = 32
    """Steps of a member in the first round."""
    samples: int = 256
    """Samples of a step in the first round."""
    restarts: int = 4
    """Restarts in each later round, shared by the best members."""
    best: int = 2
    """The number of these members."""
    steps_of_restart: int = 75
    steps_of_finish: int = 220
    samples_later: int = 512
    """Samples of a step of a restart or a finish."""
    steps_of_lwc: int = 800
    samples_of_lwc: int = 128
    steps_after_lwc: int = 100
    """Steps of the finish that starts where LWC ended."""


class Ensemble(Attack):
    """Attacks that differ in objective, update and start, after AutoAttack (Croce and Hein, 2020) for inputs.

    AutoAttack counts a sample as lost if any member flips it. A chip has one perturbation for all samples, so here
    the lowest accuracy of one perturbation counts, and members start from what others found.

    In the first round each member (`MEMBERS`) makes 32 steps from zero, of 256 samples each. In each later round
    the best two (not those that push everything into one class, which cannot win) begin anew from two random
    points of the box each, 75 steps of 512 samples; then `FINISH` makes 220 steps from the best of these, in the
    second round from the worst so far: how low a run ends depends on where it began, and shows early. As in
    APGD, the step of the finish is halved when it did not lower the accuracy. Then LWC makes 800 steps of 128
    samples, and `FINISH` goes on from there with 100: on networks trained with noise all others may end with
    everything in one class, where no gradient leads out. Samples are shuffled, but in the given order for LWC.
    Within a run steps decay to zero, but LWC's and F-LWC's do not; its end is scored over the whole reference set.
    Networks of a few weights end with single weights flipped one by one.

    Args:
        rounds: how many, 1 or more, if there is no budget.
        budget: passes over the reference set, at most; rounds go on until it is spent. One that is too small for
            a step of a member is refused when the attack begins.

    Cost: a run takes 2 passes for each time that its steps go through the reference set, and 1 for its score.
    Memory, in sizes of the perturbed weights: the worst and the current perturbation, the chip's weights, the
    gradient, the momentum, and copies of one layer's: at the peak 5.8 with VGG-16, of whose weights one layer has
    0.74; 6.8 in LWC's steps and 7.8 with Adam in a tanh box. Beside that, 256 MiB of inputs at most, twice that
    for a moment.

    Example:
        >>> from worstcase import Crossbar
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> Ensemble()(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))]).accuracy
        0.0
    """

    name = "ensemble"
    schedule: ClassVar[Schedule] = Schedule()

    def __init__(self, *, rounds: int = 2, budget: float | None = None) -> None:
        whole("rounds", rounds)
        if budget is not None:
            number("budget", budget, low=1, also="in passes over the reference set")
        self.rounds, self.budget = rounds, budget

    def expected_passes(self, run: Search) -> float:
        if self.budget is not None:
            return self.budget
        passes = 1 + 3 * min(run.classes, CLASSES) / _pieces(run)
        first = len(MEMBERS) * _passes(run, self.schedule.steps, self.schedule.samples)
        passes += first + (self.rounds - 1) * _passes_of_later_round(run, self.schedule)
        weights = run.weights
        return passes + (FLIPS * weights if weights <= FLIPS else 0)

    def search(self, run: Search) -> None:
        budget, plan = self.expected_passes(run), self.schedule
        generator = torch.Generator(run.device).manual_seed(run.seed)
        team = _Team(run, budget, plan, generator, limited=self.budget is not None)
        if self.budget is not None and not team.steps_left(plan.samples):
            least = run.passes + 1 + 2 * _pieces_a_step(run, plan.samples) / _pieces(run)
            raise ValueError(
                f"budget={self.budget:g}: one step of one member needs {math.ceil(least)} passes here"
            )
        for member in team.members:
            team.attack(member, run.box.zero, plan.steps, plan.samples, member.step)
        for round_ in range(1, self.rounds) if self.budget is None else count(1):
            share = min(1.0, (budget - run.passes) / _passes_of_later_round(run, plan))
            if share * plan.steps_of_restart < plan.steps:  # what is left of a budget
                worst: Callable[[], Perturbation] = partial(dict, run.worst)
                team.attack(FINISH, worst, plan.steps_of_finish, plan.samples_later, team.step_of_finish)
            else:
                team.later_round(share, is_second=round_ == 1)
            if team.is_done:
                return
        if run.weights <= FLIPS:
            _flip_weights(run, budget, generator)


class _Team:
    """The members at work on one network: what each found, and whether the budget allows more."""

    def __init__(
        self, run: Search, budget: float, plan: Schedule, generator: torch.Generator, *, limited: bool
    ) -> None:
        self.run, self.budget, self.plan, self.limited = run, budget, plan, limited
        self.batches = _endless(run, generator)
        self.in_order = _in_order(run)
        self.targets = _attractors(run, *next(self.batches), passes=budget / SHARE if limited else math.inf)
        self.generator = generator
        self.members = [member for member in MEMBERS if run.classes >= member.classes]
        self.found: dict[Member, dict[str, Any]] = {
            m: {"member": m.name, "accuracy": None, "lowest": None, "passes": 0.0} for m in [*self.members, LWC]
        }
        run.members = list(self.found.values())
        self.step_of_finish = STEP_OF_FINISH
        self.is_done = False

    def attack(
        self, member: Member, start: Callable[[], Perturbation], steps: int, samples: int, step: float
    ) -> tuple[float, Perturbation]:
        """The accuracy that some steps of a member from a start come to, and where.

        The accuracy is 2 if the budget has no step left, or if nothing is left to win. The start is given as what
        makes it, so that nobody holds it while the steps are made.
        """
        run, result, before = self.run, self.found[member], self.run.passes
        a_step = _pieces_a_step(run, samples)
        steps = min(steps, self.steps_left(samples))
        if steps < 1 or run.worst_accuracy == 0:
            self.is_done = True
            return 2.0, {}
        update = member.update(run.box, start())
        batches = self.in_order if member is LWC else self.batches
        for done in range(steps):
            left = 1 - done / steps
            objective = member.objective(left, self.targets)
            some: Loader = islice(batches, a_step)
            if self.limited:
                some = list(some)
                if 2 * sum(len(labels) for _, labels in some) > (self.budget - run.passes - 1) * run.samples:
                    break  # these are more samples than most
            update(run.gradient(objective, update.perturbation, some), step * (left if member.decays else 1))
        end = update.perturbation
        accuracy = run.score(end, member=member.name)
        if result["lowest"] is None:
            result["lowest"] = accuracy
            result["accuracy"] = accuracy if member in self.members else None
        result["lowest"] = min(result["lowest"], accuracy)
        result["passes"] += run.passes - before
        return accuracy, end

    def steps_left(self, samples: int) -> int:
        """The number of steps that the budget allows, with the score after them."""
        a_step = 2 * _pieces_a_step(self.run, samples) / _pieces(self.run)
        return max(0, math.floor((self.budget - self.run.passes - 1) / a_step))

    def later_round(self, share: float, *, is_second: bool) -> None:
        """Restarts and a finish, LWC and a finish, each with a share of its steps."""
        run, plan = self.run, self.plan
        somewhere = partial(run.box.sample, "uniform", self.generator)
        steps = (plan.steps_of_restart, plan.steps_of_finish, plan.steps_of_lwc, plan.steps_after_lwc)
        restart, finish, lwc, after_lwc = (round(share * n) for n in steps)
        lowest: float = run.worst_accuracy if is_second else 2.0
        start: Perturbation = run.worst
        for member in self.best():
            accuracy, end = self.attack(member, somewhere, restart, plan.samples_later, member.step)
            if accuracy <= lowest:
                lowest, start = accuracy, run.worst if accuracy == run.worst_accuracy else end
            del end  # a perturbation less to hold
        accuracy = self.attack(FINISH, partial(dict, start), finish, plan.samples_later, self.step_of_finish)[0]
        if accuracy > lowest:
            self.step_of_finish /= 2
        del start
        begin = run.box.zero if is_second else somewhere
        ends = [self.attack(LWC, begin, lwc, plan.samples_of_lwc, LWC.step)[1]]
        self.attack(FINISH, ends.pop, after_lwc, plan.samples_later, self.step_of_finish)

    def best(self) -> list[Member]:
        """The members that make the restarts of a round, in turn."""
        able = [m for m in self.members if m.can_win and m is not FINISH and self.found[m]["lowest"] is not None]
        able.sort(key=lambda m: self.found[m]["lowest"])
        return able[: self.plan.best] * (self.plan.restarts // self.plan.best)


def _passes(run: Search, steps: int, samples: int) -> float:
    """The passes of some steps of one member and of its score."""
    return 1 + 2 * steps * _pieces_a_step(run, samples) / _pieces(run)


def _passes_of_later_round(run: Search, plan: Schedule) -> float:
    steps = plan.restarts * [plan.steps_of_restart] + [plan.steps_of_finish, plan.steps_after_lwc]
    of_lwc = _passes(run, plan.steps_of_lwc, plan.samples_of_lwc)
    return sum(_passes(run, n, plan.samples_later) for n in steps) + of_lwc


def _piece(run: Search) -> int:
    """Samples of a mini-batch: not more than the user's own, whose size the memory may ask for."""
    return min(PIECE, math.ceil(run.samples / run.mini_batches))


def _pieces(run: Search) -> int:
    return math.ceil(run.samples / _piece(run))


def _pieces_a_step(run: Search, samples: int) -> int:
    samples_a_step = min(samples, run.samples / 8)
    return max(1, math.floor(samples_a_step * _pieces(run) / run.samples))


def _attractors(run: Search, inputs: Inputs, labels: Tensor, *, passes: float) -> list[int]:
    """Classes, those first into which one sign step of the whole bound pushes a mini-batch furthest.

    Of many classes, only those with the largest mean logits are tried, as many as the passes allow.
    """
    a_pass = len(labels) / run.samples
    allowed = math.floor(min(CLASSES, (passes / a_pass - 1) / 3))
    if allowed < 1:
        return list(range(run.classes))
    zero = run.box.zero()
    with torch.no_grad():
        logits, answers = decisions(run.crossbar(inputs, zero), labels)
        likely = logits.mean(0).argsort(descending=True)[:CLASSES].tolist()
    tried = likely[:allowed]
    distance = {}
    for target in tried:
        objective = partial(into_class, target=target)
        gradient = run.gradient(objective, zero, [(inputs, labels)])
        pushed = run.box.at({name: -g.sign() for name, g in gradient.items()})
        with torch.no_grad():
            logits, answers = decisions(run.crossbar(inputs, pushed), labels)
            distance[target] = objective(logits, answers).mean().item()
    run.count((1 + len(tried)) * len(labels))
    return sorted(tried, key=lambda target: distance[target]) + likely[len(tried) :]


def _sigmoid(left: float, targets: list[int]) -> Objective:
    """The temperature falls from 0.12 to 0.02 of the mini-batch's mean absolute margin."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        scale = margin(logits.detach(), labels).abs().mean().clamp_min(torch.finfo(logits.dtype).tiny)
        return sigmoid_margin(logits, labels, scale * (0.02 + 0.1 * left))

    return objective


def _then_sigmoid(objective: Objective) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: objective if left > 0.7 else _sigmoid(left, targets)


def _fixed(objective: Objective) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: objective


def _into(rank: int) -> Callable[[float, list[int]], Objective]:
    return lambda left, targets: partial(into_class, target=targets[rank])


class Member(NamedTuple):
    """One attack of the ensemble."""

    name: str
    objective: Callable[[float, list[int]], Objective]
    """Made from the share of steps that is left, 1..0, and the classes in the order of `_attractors`."""
    update: Callable[[Box, Perturbation], Any] = MomentumSignSteps
    step: float = 0.6
    """The first step, in units of the bound (for Adam of tanh's argument)."""
    decays: bool = True
    classes: int = 2
    """The least number of classes that it needs."""
    can_win: bool = True
    """Whether it can leave fewer right answers than one class has."""


MEMBERS = (
    Member("flwc", _fixed(p2), SignSteps, step=0.1, decays=False),
    Member("sigmoid margin", _sigmoid),
    Member("into one class", _into(0), can_win=False),
    Member("p6", _fixed(p6)),
    Member("cross-entropy", _fixed(cross_entropy)),
    Member("p2, then sigmoid margin", _then_sigmoid(p2)),
    Member("dlr", _fixed(dlr), classes=3),
    Member("into another class", _into(1), can_win=False),
    Member("p6, Adam in a tanh box", _fixed(p6), TanhAdam, step=0.3),
    Member("p6, then sigmoid margin", _then_sigmoid(p6)),
)
FINISH = MEMBERS[1]
"""The sigmoid is nearest to the accuracy itself: it goes on best from where others stop."""
LWC = Member("lwc", _fixed(p2), ProjectedAdam, step=0.2, decays=False)
"""Needs many small steps, so it is in no first round."""


def _endless(run: Search, generator: torch.Generator) -> Iterator[tuple[Inputs, Tensor]]:
    """Mini-batches, again and again, shuffled: all samples, or as many at a time as the buffer holds."""
    while True:
        held: list[tuple[Inputs, Tensor]] = []
        for batch in run.batches():
            size = sum(t.numel() * t.element_size() for x, _ in held for t in tensors_in(x))
            if held and (size >= BUFFER or form(*batch) != form(*held[0])):
                yield from _shuffled(run, held, generator)
                held = []
            held.append(batch)
        yield from _shuffled(run, held, generator)


def _in_order(run: Search) -> Iterator[tuple[Inputs, Tensor]]:
    """Mini-batches, again and again, as the reference set has them."""
    while True:
        for inputs, labels in run.batches():
            yield from split(inputs, labels, math.ceil(len(labels) / PIECE))


def _shuffled(
    run: Search, batches: list[tuple[Inputs, Tensor]], generator: torch.Generator
) -> Iterator[tuple[Inputs, Tensor]]:
    inputs, labels = joined(batches)
    batches.clear()  # frees them
    order = torch.randperm(len(labels), generator=generator, device=run.device).to(labels.device)
    for piece in order.tensor_split(math.ceil(len(labels) / _piece(run))):
        yield taken(inputs, piece), labels[piece]


def _flip_weights(run: Search, budget: float, generator: torch.Generator) -> None:
    """Move single weights to the other end of the box while that does not raise the accuracy.

    After a round over all weights that lowers nothing, it goes on from a random vertex.
    """
    current = {name: d.clone() for name, d in run.worst.items()}
    accuracy = run.worst_accuracy
    places = [(name, index) for name, d in current.items() for index in product(*map(range, d.shape))]
    while True:
        before = accuracy
        for place in torch.randperm(len(places), generator=generator, device=run.device).tolist():
            if run.worst_accuracy == 0 or run.passes + 1 > budget:
                return
            name, index = places[place]
            d = current[name]
            old = d[index].clone()
            low, high = (end[name].expand_as(d)[index] for end in (run.box.low, run.box.high))
            d[index] = low if old - low > high - old else high
            found = run.score(current, member="flips")
            if found > accuracy:
                d[index] = old
            else:
                accuracy = found
        if accuracy == before:
            current = run.box.sample("vertex", generator)
            accuracy = run.score(current, member="flips")
