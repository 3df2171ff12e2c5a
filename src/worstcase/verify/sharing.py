"""Pulses shared out among weights for the worst case: share, attack, learn from the found chip, share again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worstcase.attacks import Attack, AttackResult, Ensemble
from worstcase.batches import Loader
from worstcase.checks import choice, number, whole
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.verify import sensitivities
from worstcase.verify.allocation import allocated
from worstcase.verify.cost import Programming

WAYS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "same": sensitivities.the_same,
    "random": sensitivities.at_random,
    "first_and_last": sensitivities.first_and_last,
    "magnitude": sensitivities.by_magnitude,
    "swim": sensitivities.by_second_derivative,
    "array": sensitivities.by_gradient,
    "weight": sensitivities.by_gradient,
}
"""What pulses can be shared out by: the same th_g everywhere; what others do; and ours, which learn from attacks,
with one th_g an array or each weight's own."""
OURS = ("array", "weight")
DRAWN = ("random", "swim")  # draw numbers
BY_DATA = ("swim", *OURS)  # the others look at weights alone
ROUNDS = 4
TRIES = 2  # of a number of pulses, with what the first taught, before it counts as broken
SMALLEST = 1 / 64  # of what pulses beyond one a device there could be, for a search
FRESH = 1000  # is added to the seed to verify

Tolerances = dict[str, float | Tensor]
"""th_g by array: a number, or one for each weight."""


class NotSharedError(ValueError):
    """Nothing tells which weights the pulses should go to."""


@dataclass(frozen=True)
class Shared:
    """Pulses shared out, and what the attack that verifies it found."""

    thg: Tolerances
    """As `Crossbar` takes it and `worstcase.save_tolerances` writes it."""
    pulses_per_weight: float
    attack: AttackResult = field(repr=False)
    """With a fresh seed and, of the ensemble, twice the budget."""


class Sharing:
    """A way to share out pulses among the weights of a network.

    By the gradient at the weights as programmed first. `learn` adds the gradient at a chip that was found, as in
    fictitious play: all count alike, so that the next tolerances hold against every chip that was met.

    Args:
        crossbar: the network.
        loader: batches whose gradients count, best of the training data.
        by: a key of `WAYS`.
        programming: of the devices; None: see `Programming.of`.
        seed: of what `random` and `swim` draw.

    Raises:
        ValueError: there is no such way, or weights are held so that pulses cannot be counted.
        NotSharedError: no weight seems to matter.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        loader: Loader,
        by: str = "weight",
        programming: Programming | None = None,
        seed: int = 0,
    ) -> None:
        choice("by", by, WAYS)
        check_countable(crossbar)
        self.crossbar, self.loader, self.by = crossbar, loader, by
        self.programming = Programming.of(crossbar, programming)
        drawn = {"seed": seed} if by in DRAWN else {}
        self._total = _normalised(WAYS[by](crossbar, loader, **drawn))
        if not any(bool(one.any()) for one in self._total.values()):
            raise NotSharedError(
                f"by={by!r}: no weight seems to matter: all gradients are zero, as where answers saturate, or "
                "some are not finite; 'same' needs none"
            )

    def tolerances(self, pulses: float) -> Tolerances:
        """th_g at which a weight takes so many pulses on average.

        Raises:
            ValueError: fewer pulses than a weight has devices.
        """
        if self.by != "array":
            return dict(allocated(self._total, pulses, self.programming))
        found = allocated(sensitivities.of_each_array(self._total), pulses, self.programming)
        return {name: thg.flatten()[0].item() for name, thg in found.items()}

    def learn(self, chip: Perturbation) -> None:
        """Count the gradient at a chip too. Cost: one forward and one backward pass."""
        there = _normalised(sensitivities.by_gradient(self.crossbar, self.loader, at=chip))
        self._total = {name: t + there[name] for name, t in self._total.items()}


def not_countable(crossbar: Crossbar) -> str:
    """Why the pulses of a network's weights cannot be counted; empty if they can."""
    if not crossbar.mapping.is_simple or crossbar.stuck or crossbar.depends_on_conductance:
        return "only where each weight has a number as th_g, on sound devices with a digital sign"
    if crossbar.full_scale != "layer_max":
        return "only where th_g is in units of each layer's largest weight, full_scale=layer_max"
    return ""


def mean_pulses(thg: Tolerances, crossbar: Crossbar, programming: Programming) -> float:
    """What the arrays' th_g cost: pulses a weight, on average; infinite where one is 0."""
    sizes = crossbar.coverage().programmed
    spent = sum(programming.pulses(thg[name]).mean().item() * weights for name, weights in sizes.items())
    return spent / sum(sizes.values())


def check_countable(crossbar: Crossbar) -> None:
    """Make sure that the pulses of a network's weights can be counted.

    Raises:
        ValueError: they cannot.
    """
    if why_not := not_countable(crossbar):
        raise ValueError(f"pulses cannot be shared out: {why_not}")


def tightened(
    crossbar: Crossbar,
    loader: Loader,
    pulses: float,
    *,
    by: str = "weight",
    training: Loader | None = None,
    attack: Attack | None = None,
    rounds: int = ROUNDS,
    programming: Programming | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Tolerances:
    """Share out pulses; ours, so often as there are rounds, each time with what the last attack taught.

    Args:
        crossbar: the network; its th_g does not matter, and is the same afterwards.
        loader: the reference set that is attacked.
        pulses: a weight, on average over all weights; more than it has devices.
        by: a key of `WAYS`.
        training: batches whose gradients count; None: those of the reference set.
        attack: that is learnt from; None: the first round of the ensemble.
        rounds: attacks that are learnt from, 0 or more.
        programming: of the devices; None: see `Programming.of`.
        seed: of what the attacks draw.
        progress: see `worstcase.evaluate`.

    Returns:
        The tolerances of the round with the highest attacked accuracy, th_g by array.

    Raises:
        ValueError: a setting is out of range, or see `Sharing`.

    Cost: an attack, and two passes over the training batches, a round.

    Example:
        >>> import torch
        >>> from worstcase.attacks import FLWC
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.1)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> data = [(torch.tensor([[2.0, 0.5]]), torch.tensor([0]))]
        >>> thg = tightened(crossbar, data, 4.0, attack=FLWC(), progress=False)["weight"]
        >>> bool((thg[:, 0] < thg[:, 1]).all())  # the first input is larger, so its weights have to be right
        True
    """
    whole("rounds", rounds, least=0)
    sharing = Sharing(crossbar, loader if training is None else training, by, programming, seed)
    tolerances = sharing.tolerances(pulses)
    if by not in OURS or not rounds:
        return tolerances
    attack = attack or Ensemble(rounds=1)
    highest, best = -1.0, tolerances
    for round_ in range(rounds):
        with crossbar.bounded_by(tolerances):
            found = attack(crossbar, loader, seed=seed + round_, progress=progress)
        if found.accuracy > highest:
            highest, best = found.accuracy, tolerances
        sharing.learn(found.perturbation)
        tolerances = sharing.tolerances(pulses)
    return best


def cheapest(
    crossbar: Crossbar,
    loader: Loader,
    accuracy: float,
    most: float,
    *,
    by: str = "weight",
    training: Loader | None = None,
    attack: Attack | None = None,
    programming: Programming | None = None,
    precision: float = 0.05,
    seed: int = 0,
    progress: bool = True,
) -> Shared | None:
    """The fewest pulses with which no attack breaks an accuracy, found by bisection.

    Where an attack breaks it, its chip is learnt from, and the same pulses are shared out once more. What is left
    is verified by the attack with a fresh seed and twice the budget, and gets more pulses until that holds.

    Args:
        crossbar, loader, by, training, programming, seed, progress: see `tightened`.
        accuracy: that each chip has to keep, above 0 and at most 1.
        most: pulses a weight, above which nobody asks; more than a weight has devices.
        attack: None: the ensemble. Its first round alone is learnt from.
        precision: the relative width to which pulses beyond one a device are found, above 0.

    Returns:
        None where even the most pulses do not suffice.

    Raises:
        ValueError: a setting is out of range, or see `Sharing`.

    Cost: about ten short attacks and a few long ones.
    """
    number("accuracy", accuracy, above=0, high=1)
    number("precision", precision, above=0)
    sharing = Sharing(crossbar, loader if training is None else training, by, programming, seed)
    devices = sharing.programming.devices
    number("most", most, above=devices, also="a weight: each device takes one or more")
    attack = attack or Ensemble()
    attacks = 0

    def kept(extra: float, attack: Attack, seed: int) -> Shared | None:
        tolerances = sharing.tolerances(devices + extra)
        with crossbar.bounded_by(tolerances):
            found = attack(crossbar, loader, seed=seed, progress=progress)
        if found.accuracy >= accuracy:
            return Shared(tolerances, mean_pulses(tolerances, crossbar, sharing.programming), found)
        sharing.learn(found.perturbation)
        return None

    low, high = SMALLEST * (most - devices), most - devices
    while high > (1 + precision) * low:
        middle = math.sqrt(low * high)
        for _ in range(TRIES):
            attacks += 1
            if kept(middle, _short(attack), seed + attacks):
                high = middle
                break
        else:
            low = middle
    step = 1 + precision
    while True:
        attacks += 1
        if verified := kept(high, _long(attack), seed + FRESH + attacks):
            return verified
        if high >= most - devices:
            return None
        high, step = min(high * step, most - devices), step**2


def _short(attack: Attack) -> Attack:
    return Ensemble(rounds=1) if isinstance(attack, Ensemble) and attack.budget is None else attack


def _long(attack: Attack) -> Attack:
    """The ensemble with twice the budget: one round more than two is that."""
    if not isinstance(attack, Ensemble):
        return attack
    return Ensemble(rounds=max(2, 2 * attack.rounds - 1), budget=attack.budget and 2 * attack.budget)


def _normalised(sensitivity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU in float64, with the sum 1, so that all found chips count alike; 0 where it is not finite."""
    wide = {name: one.detach().cpu().double() for name, one in sensitivity.items()}
    total = sum(one.sum().item() for one in wide.values())
    return {name: one / total if 0 < total < math.inf else torch.zeros_like(one) for name, one in wide.items()}
