"""Red flags: signs in the attacks' own results that a worst case should not be believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from worstcase.evaluation.record import Found, Record

POINTS = 0.5  # percent; smaller differences are no sign of anything
RISE = 3.0  # points, within an attack: iterates swing
DISAGREEMENT = 20.0  # points
VANISHED = 0.1  # share of the mini-batches


def red_flags(
    attacks: Sequence[Found],
    random_vertex: float | None = None,
    diagnosis: Mapping[str, Any] | None = None,
) -> list[str]:
    """What speaks against believing some attacks on one network; empty if nothing does.

    Args:
        attacks: of one network and reference set.
        random_vertex: the lowest accuracy 0..1 of some random corners of the box at the largest th_g.
        diagnosis: of the worst chip at the largest th_g, as `worstcase.evaluation.diagnosis.diagnose` gives it.

    Returns:
        A line for each: an attack that finds less than a random vertex does; accuracy that rises with th_g, or
        within an attack; gradients that vanish; attacks other than sampling, or members of an ensemble, that
        disagree by more than 20 points; an attack on some of the weights that finds less than those on all.
    """
    flags = []
    largest = max(found.thg for found in attacks)
    for found in attacks:
        at = f"{found.attack} at th_g {found.thg:g}"
        if random_vertex is not None and found.thg == largest and found.accuracy > random_vertex:
            flags.append(f"{at}: {_p(found.accuracy)} is worse than a random vertex ({_p(random_vertex)})")
        if found.vanished > VANISHED:
            flags.append(
                f"{at}: gradients vanish (zero for every weight, or not finite, in {_p(found.vanished)} of the "
                "mini-batches)"
            )
        if not (found.members or found.distribution):
            lowest = min(_own(found), key=lambda entry: entry["accuracy"])
            if _points(found.final_accuracy, lowest["accuracy"]) > RISE:
                flags.append(
                    f"{at}: the accuracy rises with the budget, {_p(lowest['accuracy'])} after "
                    f"{lowest['passes']:.0f} passes and {_p(found.final_accuracy)} at the end"
                )
        members = [member for member in found.members if member["accuracy"] is not None]
        if members:
            best, worst = (choose(members, key=lambda m: m["accuracy"]) for choose in (max, min))
            if _points(best["accuracy"], worst["accuracy"]) > DISAGREEMENT:
                clean = found.history[0]["accuracy"]
                hides = clean - best["accuracy"] < (clean - worst["accuracy"]) / 3
                flags.append(
                    f"{at}: members disagree in the first round{' (masking?)' if hides else ''}: {best['member']} "
                    f"finds {_p(best['accuracy'])}, {worst['member']} {_p(worst['accuracy'])}"
                )
    by_kind: dict[tuple[float, str], Found] = {}  # of an attack's settings
    for found in attacks:
        if not found.distribution:
            by_kind[found.thg, found.attack] = min(
                found, by_kind.get((found.thg, found.attack), found), key=lambda f: f.accuracy
            )
    for one, other in combinations(by_kind.values(), 2):
        if one.thg == other.thg and abs(_points(one.accuracy, other.accuracy)) > DISAGREEMENT:
            flags.append(
                f"attacks disagree at th_g {one.thg:g} (masking?): {one.attack} finds {_p(one.accuracy)}, "
                f"{other.attack} {_p(other.accuracy)}"
            )
    for attack in dict.fromkeys(found.attack for found in attacks):
        own = sorted((f.thg, min(entry["accuracy"] for entry in _own(f))) for f in attacks if f.attack == attack)
        pairs = ((one, other) for one, other in combinations(own, 2) if one[0] < other[0])
        (small, low), (large, high) = max(pairs, key=lambda p: p[1][1] - p[0][1], default=(own[0], own[0]))
        if _points(high, low) > POINTS:
            flags.append(
                f"{attack}: the accuracy that it finds rises with th_g, {_p(low)} at {small:g} and "
                f"{_p(high)} at {large:g}"
            )
    for kind, accuracy in _on_some_weights(diagnosis or {}):
        if diagnosis and _points(diagnosis["accuracy"], accuracy) > POINTS:
            flags.append(
                f"an attack on {kind} finds {_p(accuracy)}, less than the {_p(diagnosis['accuracy'])} found on all"
            )
    return flags


def lower_elsewhere(record: Record, others: Iterable[Record]) -> list[str]:
    """Lines for lower accuracies that other records of a network have at the same or a smaller th_g.

    Args:
        record: of an evaluation; of sampled chips nothing is said, they are not a search.
        others: of the same training run: its own, and those of other evaluations.
    """
    same = ("model", "dataset", "samples", "full_scale", "weight_bits", "activation_bits")
    settings = ("checkpoint", "layers", "exclude")
    found = [
        attack
        for other in others
        if all(getattr(other, key) == getattr(record, key) for key in same)
        and all(other.config.get(key) == record.config.get(key) for key in settings)
        and (other.kind == "train" or other.config.get("weights") == record.config.get("weights"))
        for attack in other.attacks
    ]
    flags = []
    for attack in record.attacks:
        if attack.distribution:
            continue
        comparable = [other for other in found if other.thg <= attack.thg]
        lowest = min(comparable, key=lambda other: other.accuracy, default=attack)
        if lowest.accuracy < attack.accuracy:
            flags.append(
                f"{attack.attack} at th_g {attack.thg:g}: {_p(attack.accuracy)}, but {lowest.attack} found "
                f"{_p(lowest.accuracy)} at th_g {lowest.thg:g} in another run"
            )
    return flags


def _on_some_weights(diagnosis: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for layer in diagnosis.get("layers", []):
        if "lowest_alone" in layer:
            yield layer["array"], layer["lowest_alone"]
    for point in diagnosis.get("selective_write_verify") or []:
        yield "the most important weights", point["only_these_move"]
        yield "all but the most important weights", point["all_others_move"]


def _own(found: Found) -> list[dict[str, Any]]:
    """An attack's own results: not what it was given to start from, nor what had left the box until clamped."""
    return [e for e in found.history if not e.get("start") and e.get("magnitude", 0) <= 1.001]


def _points(high: float, low: float) -> float:
    return 100 * (high - low)


def _p(accuracy: float) -> str:
    return f"{accuracy:.2%}"
