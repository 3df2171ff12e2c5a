"""How tight write-verify must be: the largest th_g that is proven to keep an accuracy, the least that does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from worstcase.attacks import Attack, AttackResult, Ensemble
from worstcase.attacks.base import check_parameters
from worstcase.attacks.passes import accuracy as accuracy_of
from worstcase.batches import Loader
from worstcase.certificate import Certificate, Unsupported, certify, largest_thg
from worstcase.checks import choice, number
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.chip.tolerance import Tolerance, largest, of_each_array
from worstcase.verify.cost import Programming
from worstcase.verify.sharing import OURS, NotSharedError, Shared, cheapest, mean_pulses, not_countable

STEP = 2.0  # from one th_g to the next, until the accuracy is broken
FINEST = 0.001  # precision: a finer one takes longer than anybody waits
NOT_ASKED = "it was not asked for"
SMALLEST = 2.0**-20  # of the first th_g: nothing is proven, or everything breaks


@dataclass(frozen=True)
class ToleranceSearch:
    """The answer: write-verify to `proven_thg` is safe, to `broken_thg` is not; between them nobody knows."""

    accuracy: float
    """That has to be kept, 0..1."""
    clean_accuracy: float
    """As programmed."""
    proven_thg: float | None
    """The largest at which it is proven that no chip is below; 0 if at no other, None if nothing can be proven."""
    broken_thg: float | None
    """The smallest at which a chip below was found; None if there was none at any th_g."""
    programming: Programming
    weights: int
    """The number of programmed weights."""
    broken_chip: dict[str, Tensor] | None = field(repr=False)
    """A chip in the box of `broken_thg` that is below: by array, in weight units."""
    broken_accuracy: float | None
    """Of that chip."""
    pulses: dict[str, float | None]
    """That a weight takes on average at the ``proven`` and the ``broken`` th_g; None where there is none, or where
    pulses cannot be counted."""
    attacks: list[AttackResult] = field(repr=False)
    """At each th_g that was attacked, in rising order."""
    certificates: list[Certificate] = field(repr=False)
    """At each th_g that was tried to be proven, in rising order."""
    not_certified: str | None = None
    """Why nothing is proven."""
    shared: dict[str, Shared] = field(default_factory=dict, repr=False)
    """The fewest pulses that no attack broke, with one th_g for each ``array`` or with each ``weight``'s own."""
    not_shared: str | None = None
    """Why pulses are not shared out."""

    def pulses_per_weight(self) -> dict[str, float | None]:
        """What both ends cost, on average, and tolerances of arrays and of weights; None where there are none."""
        shared = {by: self.shared[by].pulses_per_weight if by in self.shared else None for by in OURS}
        return {**self.pulses, **shared}

    def seconds(self) -> dict[str, float | None]:
        """The time that these take for all weights; None where it is not known."""
        return self._of_all_weights(self.programming.seconds)

    def joules(self) -> dict[str, float | None]:
        """The energy of these for all weights; None where it is not known."""
        return self._of_all_weights(self.programming.joules)

    def _of_all_weights(self, cost: Callable[[float], float | None]) -> dict[str, float | None]:
        pulses = self.pulses_per_weight()
        return {end: None if p is None else cost(p * self.weights) for end, p in pulses.items()}

    def plain(self) -> dict[str, Any]:
        """The answer in plain types, as in ``tolerance.json``."""
        return {
            "accuracy": self.accuracy,
            "clean_accuracy": self.clean_accuracy,
            "proven_thg": self.proven_thg,
            "broken_thg": self.broken_thg,
            "broken_accuracy": self.broken_accuracy,
            "pulses_per_weight": self.pulses_per_weight(),
            "seconds": self.seconds(),
            "joules": self.joules(),
            "weights": self.weights,
            "programming": vars(self.programming),
            "attacked": [{"thg": a.thg, "accuracy": a.accuracy, "attack": a.attack} for a in self.attacks],
            "certified": [{"thg": c.thg, "accuracy": c.accuracy, "method": c.method} for c in self.certificates],
            "not_certified": self.not_certified,
            "tolerances": self.shared["array"].thg if "array" in self.shared else None,
            "shared": {
                by: {"attack": one.attack.attack, "seed": one.attack.seed, "accuracy": one.attack.accuracy}
                for by, one in self.shared.items()
            },
            "not_shared": self.not_shared,
        }

    def __str__(self) -> str:
        cost = {end: f", {p:.3g} pulses a weight" if p else "" for end, p in self.pulses.items()}
        lines = [f"to keep {self.accuracy:.2%} (as programmed {self.clean_accuracy:.2%}):"]
        if self.proven_thg is None:
            lines.append(f"nothing is proven: {self.not_certified}")
        elif self.proven_thg == 0:
            lines.append("no th_g is proven to keep it")
        else:
            lines.append(f"th_g {self.proven_thg:.3g} is proven to keep it{cost['proven']}")
        if self.broken_thg is None:
            lines.append("no attack broke it at any th_g")
        else:
            lines.append(f"th_g {self.broken_thg:.3g} breaks it{cost['broken']}")
        for by, found in self.shared.items():
            lines.append(
                f"with one th_g for each {by} no attack breaks it at {found.pulses_per_weight:.3g} pulses a weight"
            )
        if self.not_shared not in (None, NOT_ASKED):
            lines.append(f"pulses are not shared out: {self.not_shared}")
        return "\n".join(lines)


def tolerance(
    crossbar: Crossbar,
    loader: Loader,
    accuracy: float,
    *,
    attack: Attack | None = None,
    certificate: str | None = "interval",
    programming: Programming | None = None,
    precision: float = 0.05,
    where: bool = False,
    training: Loader | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ToleranceSearch:
    """Find how tight write-verify has to be for a network to keep an accuracy on every chip.

    Both ends are found by bisection, to the precision. The worst chip that was found at the next smaller th_g
    counts too; a chip that breaks the accuracy is shrunk towards the weights as programmed for as long as it does,
    which costs a forward pass each time.

    Args:
        crossbar: the network; its th_g is where the search begins, and is the same afterwards.
        loader: the reference set, see `worstcase.evaluate`.
        accuracy: that each chip has to keep, above 0 and at most 1.
        attack: breaks it; None: the ensemble.
        certificate: proves a th_g that keeps it: ``interval`` or ``linear``, see `worstcase.certificate.certify`;
            or None.
        programming: what a th_g costs; None: see `Programming.of`.
        precision: the relative width to which each end is found, 0.001 or more.
        where: also share out pulses among arrays and among weights, see `worstcase.verify.sharing.cheapest`.
        training: the batches by which they are shared out; None: the reference set.
        seed: of what the attack draws.
        progress: see `worstcase.evaluate`.

    Raises:
        ValueError: a setting is out of range, weights may be stuck, or the network does not have the accuracy as
            programmed.

    Cost: about ten attacks and twenty certificates; twenty short attacks and some long ones to share out pulses.

    Example:
        >>> import torch
        >>> from worstcase.attacks import FLWC
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.1)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> data = [(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))]  # 2 - 1 > 2 th_g (2 + 1) up to 1/6
        >>> found = tolerance(crossbar, data, 1.0, attack=FLWC(), precision=0.01, progress=False)
        >>> 0.163 < found.proven_thg < 1 / 6 < found.broken_thg < 0.17
        True
    """
    check_crossbar(crossbar)
    number("accuracy", accuracy, above=0, high=1)
    number("precision", precision, low=FINEST)
    choice("certificate", certificate, ("interval", "linear", None))
    attack = attack or Ensemble()
    check_parameters(attack)
    programming = Programming.of(crossbar, programming)
    clean = accuracy_of(crossbar, loader)
    if clean < accuracy:
        raise ValueError(f"accuracy={accuracy:g}: the network as programmed has {clean:.4g}; ask for that at most")
    if not crossbar.thg:
        raise ValueError("thg=0: the search begins at the crossbar's th_g, which must be above 0")
    if crossbar.stuck:
        raise ValueError("the search scales th_g, which it cannot where weights may be stuck")
    if where and training is not None:
        accuracy_of(crossbar, training)  # sees that it can be used
    first, limit = crossbar.thg, _limit(crossbar)
    attacks = _Attacks(crossbar, loader, attack, accuracy, seed, progress)
    broken = attacks.search(first, limit, precision)
    proofs: list[Certificate] = []
    proven, why_not = None, None if certificate else NOT_ASKED
    if certificate:
        try:
            with crossbar.bounded_by(max(found.thg for found in attacks.found)):
                proofs.append(certify(crossbar, loader, certificate))
            proven = (
                largest_thg(
                    crossbar,
                    loader,
                    accuracy,
                    proofs,
                    method=certificate,
                    low=first * SMALLEST,
                    high=broken or limit,
                    precision=precision,
                )
                or 0.0
            )
        except Unsupported as error:
            why_not = f"not supported: {error}"
    shared: dict[str, Shared] = {}
    not_shared = NOT_ASKED if not where else not_countable(crossbar)
    most = _pulses_at(broken / (1 + precision), crossbar, programming) if broken else 0.0
    if not not_shared:
        if most is None:
            not_shared = "a weight whose th_g is 0 takes endless pulses"
        elif most < (1 + precision) * programming.devices:
            not_shared = "about one pulse a device is enough for th_g as it is said"
    if most is not None and not not_shared:
        options: dict[str, Any] = {
            "training": training,
            "attack": attack,
            "programming": programming,
            "precision": precision,
            "seed": seed,
            "progress": progress,
        }
        try:
            for by in OURS:
                if found := cheapest(crossbar, loader, accuracy, most, by=by, **options):
                    shared[by] = found
            if not shared:
                not_shared = f"sharing them out breaks it too at {most:.3g} pulses a weight"
        except NotSharedError as error:
            not_shared = str(error)
    return ToleranceSearch(
        accuracy=accuracy,
        clean_accuracy=clean,
        proven_thg=proven,
        broken_thg=broken,
        programming=programming,
        weights=crossbar.coverage().weights,
        broken_chip=attacks.chip,
        broken_accuracy=attacks.accuracy_of_chip,
        pulses={
            "proven": _pulses_at(proven, crossbar, programming) if proven else None,
            "broken": _pulses_at(broken, crossbar, programming) if broken else None,
        },
        attacks=sorted(attacks.found, key=lambda found: found.thg),
        certificates=sorted(proofs, key=lambda proof: proof.thg),
        not_certified=why_not,
        shared=shared,
        not_shared=not_shared or None,
    )


def _limit(crossbar: Crossbar) -> float:
    """The largest th_g of a search: no device deviates by more than its full scale."""
    if crossbar.has_one_bound and crossbar.full_scale == "layer_max":
        return 1.0
    of = of_each_array(crossbar.tolerance, crossbar.programmed())
    if crossbar.full_scale != "layer_max":  # numbers have no end there
        of = {name: one for name, one in of.items() if isinstance(one, Tolerance)}
    most = largest(of)
    return (1 - 1e-9) * crossbar.thg / most if most > 0 else crossbar.thg / SMALLEST  # rounding may lead beyond


def _pulses_at(thg: float, crossbar: Crossbar, programming: Programming) -> float | None:
    """Pulses a weight on average where the largest th_g is this one; None where they cannot be counted."""
    if not_countable(crossbar):
        return None
    with crossbar.bounded_by(thg):
        of = of_each_array(crossbar.tolerance, crossbar.programmed())
    pulses = mean_pulses(of, crossbar, programming)  # type: ignore[arg-type]
    return pulses if math.isfinite(pulses) else None


class _Attacks:
    """Attacks at several th_g, for each of which what the next smaller one found counts too."""

    def __init__(
        self, crossbar: Crossbar, loader: Loader, attack: Attack, accuracy: float, seed: int, progress: bool
    ) -> None:
        self.crossbar, self.loader, self.attack, self.accuracy = crossbar, loader, attack, accuracy
        self.options: dict[str, Any] = {"seed": seed, "progress": progress}
        self.found: list[AttackResult] = []
        self.chip: dict[str, Tensor] | None = None
        """The chip that breaks the accuracy in the smallest box so far."""
        self.accuracy_of_chip: float | None = None

    def search(self, first: float, limit: float, precision: float) -> float | None:
        """The smallest th_g at which an attack broke the accuracy; `chip` is then the one that does."""
        kept, broken, thg = 0.0, None, first
        while True:
            if self._breaks(thg):
                broken = self._shrunk(kept, thg, precision)
            else:
                kept = thg
            if broken is None:
                if kept >= limit:
                    return None
                thg = min(limit, STEP * kept)
            elif broken <= kept * (1 + precision) or broken < first * SMALLEST:
                return broken
            else:
                thg = math.sqrt(kept * broken) if kept else broken / STEP

    def _breaks(self, thg: float) -> bool:
        smaller = [found for found in self.found if found.thg < thg]
        start = max(smaller, key=lambda found: found.thg).perturbation if smaller else None
        with self.crossbar.bounded_by(thg):
            found = self.attack(self.crossbar, self.loader, start=start, **self.options)
        self.found.append(found)
        if found.accuracy < self.accuracy:
            self.chip, self.accuracy_of_chip = found.perturbation, found.accuracy
        return found.accuracy < self.accuracy

    def _shrunk(self, kept: float, broken: float, precision: float) -> float:
        """The smallest th_g in whose box the chip, drawn towards the weights as programmed, still breaks it."""
        chip, whole = self.chip, broken
        assert chip is not None
        while broken > kept * (1 + precision) and broken > whole / STEP:
            thg = max(broken / (1 + precision), kept)
            with self.crossbar.bounded_by(thg):
                smaller = self.crossbar.box.project({name: d * (thg / whole) for name, d in chip.items()})
            if (left := accuracy_of(self.crossbar, self.loader, smaller)) >= self.accuracy:
                break
            self.chip, self.accuracy_of_chip, broken = smaller, left, thg
        return broken
