"""The ensemble: diverse attacks that share a budget, so that no single one's blindness passes for safety."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from worstcase.attacks.base import Attack
from worstcase.attacks.flips import WEIGHTS, flip_weights
from worstcase.attacks.mini_batches import MiniBatches, Size, passes_of_step
from worstcase.attacks.search import Search
from worstcase.attacks.updates import MomentumSignSteps
from worstcase.batches import Loader, inputs_and_labels
from worstcase.checks import number, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.objectives import (
    Objective,
    attract,
    cross_entropy,
    margin,
    mean_distance,
    p2,
    p6,
    sigmoid_margin,
)
from worstcase.task import decisions

CLASSES = 10  # into which everything is pushed, at most
BEST = 2  # of these, which exchange their samples with others
PARTNERS = 3  # of each of these
COLLAPSED = 0.5  # an accuracy below which a chip may give one answer to everything
ONE_ANSWER = 0.98  # of the decisions: such a chip is right on that class, and hardly a gradient leads away from it
FLIPS = 50  # tries a weight, for networks of few weights


def _fixed(objective: Callable[..., Tensor]) -> Callable[..., Objective]:
    return lambda left, **classes: partial(objective, **classes)


def _sigmoid(left: float) -> Objective:
    """The temperature falls from 0.12 to 0.02 of the mini-batch's mean absolute margin."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        temperature = mean_distance(margin(logits, labels)) * (0.02 + 0.1 * left)
        return sigmoid_margin(logits, labels, temperature)

    return objective


class Member(NamedTuple):
    """One attack of the ensemble: steps against the sign of a gradient with momentum."""

    name: str
    objective: Callable[..., Objective]
    """Made from the share of steps that is left, 1..0, and the classes that it pushes into, if any."""
    steps: int = 32
    samples: int = 256
    """Samples of a step."""
    step: float = 0.6
    """The first, in half widths of the box; later ones fall to 0."""


FIRST = Member("first steps", _sigmoid, steps=4)  # for a budget that allows no more
MEMBERS = (
    Member("sigmoid margin", _sigmoid),
    Member("cross-entropy", _fixed(cross_entropy)),
    Member("p6", _fixed(p6)),
    Member("p2", _fixed(p2)),
)
INTO_ONE_CLASS = Member("into one class, its own out", _fixed(attract))
TWO_CLASSES = Member("into two classes, exchanged", _fixed(attract), steps=48, step=1.0)
FINISHES = (
    (3, Member("finish of the best three", _sigmoid, steps=40, samples=512, step=0.4)),
    (2, Member("finish of the best two", _sigmoid, steps=120, samples=512, step=0.4)),
)
"""How many of the lowest chips go on, and how."""
KEPT = max(number for number, _ in FINISHES)


class Ensemble(Attack):
    """Attacks that differ in objective and start, after AutoAttack (Croce and Hein, 2020) for inputs.

    AutoAttack counts a sample as lost if any member flips it. A chip has one perturbation for all samples, so here
    the lowest accuracy of one perturbation counts, and members go on from what others found.

    The first round tries each member from zero (`MEMBERS`); where more than half of the decisions are still right,
    the lowest three chips make some more steps. The second pushes everything into one class after
    another, and that class's own samples out of it (the pattern of the paper's Table III), and lets the best two
    of these classes exchange samples with others: a chip that merely gives one answer is right on that class, and
    no gradient leads out of there. Then it finishes on the sigmoid of the margin, which is nearest to the accuracy
    itself: the lowest three chips make some steps, the lowest two of these more (`FINISHES`); one that gives one
    answer to nearly everything only if no others are left. Each later round does all this again, from a random
    point of the box. Networks of a few weights end with single weights flipped one by one.

    Args:
        rounds: how many, 1 or more, if there is no budget.
        budget: passes over the reference set, at most. Members are tried in the same order whatever it is, until
            the next does not fit: a larger budget does all that a smaller one does first, so with the same seed it
            never finds less; only on networks of a few weights, whose single flips begin where the members end,
            it may. One that the first member does not fit in is refused when the attack begins.

    Cost: a member takes 2 passes for each time that its steps go through the reference set, and 1 for its score.
    Memory, in sizes of the perturbed weights: the worst and the current perturbation, the chip's weights, the
    gradient twice, the momentum, a quarter for each of at most four starts, and copies of one layer's. Beside
    that, 256 MiB of inputs at most, twice that for a moment.

    Example:
        >>> from worstcase import Crossbar
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> Ensemble()(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))]).accuracy
        0.0
    """

    name = "ensemble"
    share_of_steps: ClassVar[float] = 1.0
    """That each member makes; less where it does not matter how much is found."""

    def __init__(self, *, rounds: int = 2, budget: float | None = None) -> None:
        whole("rounds", rounds)
        if budget is not None:
            number("budget", budget, low=1, also="in passes over the reference set")
        self.rounds, self.budget = rounds, budget

    def expected_passes(self, run: Search) -> float:
        if self.budget is not None:
            return self.budget
        classes = min(run.classes, CLASSES)
        exchanges = min(classes, BEST) * min(classes - 1, PARTNERS)
        first = sum(_passes(run, member) for member in (FIRST, *MEMBERS)) + _passes_of(run, FINISHES[:1])
        later = classes * _passes(run, INTO_ONE_CLASS) + exchanges * _passes(run, TWO_CLASSES)
        later += _passes_of(run, FINISHES)
        if run.classes > CLASSES:
            later += 1  # of a mini-batch, which tells the likely ones
        passes = 2 + max(1, self.rounds - 1) * first + (self.rounds - 1) * later
        return passes + (FLIPS * run.weights if run.weights <= WEIGHTS else 0)

    def check_fit(self, crossbar: Crossbar, loader: Loader) -> None:
        """Cost: it goes through the reference set's labels where the budget is small."""
        if self.budget is not None and self.budget < 1 + _passes(Size(1, 1), FIRST):  # the most that it may need
            samples = [len(inputs_and_labels(batch)[1]) for batch in loader]
            if samples:
                _check_budget(self.budget, Size(sum(samples), len(samples)), 1)

    def search(self, run: Search) -> None:
        budget = math.inf if self.budget is None else self.budget
        team = _Team(run, budget)
        _check_budget(budget, run, run.passes)
        is_small = run.weights <= WEIGHTS
        with suppress(_Spent):
            for round_ in count(1) if self.budget and not is_small else range(1, self.rounds + 1):
                if round_ > 2:
                    team.begin_anew()
                if round_ != 2:
                    team.try_members()
                    if run.worst_accuracy > COLLAPSED:
                        team.finish(FINISHES[:1])
                if round_ > 1:
                    team.push_into_classes()
                    team.finish(FINISHES)
        if is_small:
            flip_weights(run, self.expected_passes(run), team.generator)


class _Spent(Exception):  # noqa: N818 (no error)
    """The next member does not fit in the budget, or nothing is left to win."""


class _Team:
    """The members at work on one network: what each found, and the chips from which a finish starts."""

    def __init__(self, run: Search, budget: float) -> None:
        self.run, self.budget = run, budget
        self.generator = torch.Generator(run.device).manual_seed(run.seed)
        self.batches = MiniBatches(run, self.generator)
        self.start = Start(run.box, run.box.zero())
        self.lowest: list[tuple[bool, float, Start]] = []  # whether it gives one answer; its accuracy
        self.found: dict[str, dict[str, Any]] = {}

    def begin_anew(self) -> None:
        """Members start from a random point of the box; what others found is left alone."""
        self.start = Start(self.run.box, self.run.box.sample("uniform", self.generator))
        self.lowest.clear()

    def try_members(self) -> None:
        for member in (FIRST, *MEMBERS):
            self.attack(member, self.start)

    def push_into_classes(self) -> None:
        tried = [(self.attack(INTO_ONE_CLASS, self.start, target=c), c) for c in self._likely_classes()]
        order = [c for _, c in sorted(tried)]
        for best in order[:BEST]:
            for other in [c for c in order if c != best][:PARTNERS]:
                self.attack(TWO_CLASSES, self.start, target=best, own=other)

    def finish(self, finishes: Sequence[tuple[int, Member]]) -> None:
        """Go on from the lowest chips."""
        for number_, member in finishes:
            starts = [start for *_, start in self.lowest[:number_]]
            self.lowest.clear()
            while starts:
                self.attack(member, starts.pop(0))

    def attack(self, member: Member, start: Start, **classes: int) -> float:
        """The accuracy to which a member's steps from a start come."""
        run, before = self.run, self.run.passes
        if run.worst_accuracy == 0 or before + _passes(run, member) > self.budget:
            raise _Spent
        update = MomentumSignSteps(run.box, start.perturbation(run.box))
        steps = _steps(member)
        for step in range(steps):
            left = 1 - step / steps
            objective = member.objective(left, **classes)
            batches = self.batches.take(member.samples)
            update(run.gradient(objective, update.perturbation, batches), member.step * left)
        accuracy = run.score(update.perturbation, member=member.name)
        self.lowest.append((run.one_answer > ONE_ANSWER, accuracy, Start(run.box, update.perturbation)))
        self.lowest.sort(key=lambda kept: kept[:2])
        del self.lowest[KEPT:]
        self._record(member, accuracy, run.passes - before)
        return accuracy

    def _record(self, member: Member, accuracy: float, passes: float) -> None:
        if member.name not in self.found:
            alone = accuracy if member in MEMBERS else None
            self.found[member.name] = {"member": member.name, "accuracy": alone, "lowest": 1.0, "passes": 0.0}
            self.run.members = list(self.found.values())
        result = self.found[member.name]
        result["lowest"] = min(result["lowest"], accuracy)
        result["passes"] += passes

    def _likely_classes(self) -> list[int]:
        """Of many classes those of the largest mean logits over a mini-batch."""
        run = self.run
        if run.classes <= CLASSES:
            return list(range(run.classes))
        (inputs, labels), *_ = self.batches.take(1)
        if run.passes + len(labels) / run.samples > self.budget:
            raise _Spent
        with torch.no_grad():
            logits, _ = decisions(run.crossbar(inputs), labels)
        run.count(len(labels))
        return logits.mean(0).topk(CLASSES).indices.tolist()


def _check_budget(budget: float, size: Search | Size, spent: float) -> None:
    if (least := spent + _passes(size, FIRST)) > budget:
        raise ValueError(f"budget={budget:g}: the first member needs {math.ceil(least)} passes here")


def _steps(member: Member) -> int:
    return max(1, round(Ensemble.share_of_steps * member.steps))


def _passes(run: Search | Size, member: Member) -> float:
    """The passes of a member's steps and its score, at most."""
    return 1 + _steps(member) * passes_of_step(run, member.samples)


def _passes_of(run: Search, finishes: Sequence[tuple[int, Member]]) -> float:
    return sum(number_ * _passes(run, member) for number_, member in finishes)


class Start:
    """A perturbation in 8 bits a weight, which is enough to start from."""

    def __init__(self, box: Box, perturbation: Perturbation) -> None:
        places = box.relative(perturbation)
        self._places = {name: (127 * place).round_().to(torch.int8) for name, place in places.items()}

    def perturbation(self, box: Box) -> dict[str, Tensor]:
        """It, in the box."""
        perturbation = box.at({name: p.to(box.weights[name].dtype) / 127 for name, p in self._places.items()})
        box.project_(perturbation)
        return perturbation
