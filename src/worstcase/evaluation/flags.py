"""Red flags: reasons in the attacks' own results not to believe a number. `docs/flags.md` explains each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from worstcase.evaluation.finished_runs import another_network
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import of_devices, of_test_data
from worstcase.found import Found

if TYPE_CHECKING:
    from worstcase.chip.crossbar import Crossbar

POINTS = 0.5  # percent; smaller differences are no sign of anything
RISE = 3.0  # points, within an attack: iterates swing
DISAGREEMENT = 20.0  # points
VANISHED = 0.1  # share of the mini-batches
COVERED = 0.9  # share of a network's values that are programmed
ROUNDING = 0.01  # share of the answers that rounding in another order may change
LISTED = 4  # names


def red_flags(
    attacks: Sequence[Found],
    random_vertex: float | None = None,
    diagnosis: Mapping[str, Any] | None = None,
) -> list[str]:
    """Reasons not to believe what some attacks found on one network; empty if there are none.

    Args:
        attacks: of one network and reference set.
        random_vertex: the lowest accuracy 0..1 of some random corners of the box at the largest th_g.
        diagnosis: of the worst chip at the largest th_g, as `worstcase.evaluation.diagnosis.diagnose` gives it.

    Returns:
        A line for each; ``docs/flags.md`` explains them, and each line ends with its section there.
    """
    largest = max(found.thg for found in attacks)
    flags: list[str] = []
    for found in attacks:
        if random_vertex is not None and found.thg == largest:
            flags += _explained("random-vertex", _above_a_random_vertex(found, random_vertex))
        flags += _explained("vanishing-gradients", _vanishing_gradients(found))
        flags += _explained("arrays-that-stand-still", _standing_still(found))
        flags += _explained("sorted-data", _of_sorted_data(found))
        flags += _explained("rises-with-budget", _rises_with_budget(found))
        flags += _explained("members-disagree", _members_disagree(found))
    flags += _explained("attacks-disagree", _attacks_disagree(attacks))
    flags += _explained("rises-with-th_g", _rises_with_thg(attacks))
    if diagnosis:
        flags += _explained("some-weights", _less_on_some_weights(diagnosis))
    return flags


def of_the_network(crossbar: Crossbar) -> list[str]:
    """Flags that are about the network, not about an attack; lines like those of `red_flags`."""
    digital, zeros = _digital(crossbar), _of_zeros(crossbar)
    return _explained("digital-weights", digital) + _explained("arrays-of-zeros", zeros)


def of_a_chip(accuracy: float, failed: int, attacks: Sequence[Found]) -> list[str]:
    """Flags about a chip that was read back, given how many of its weights are outside the box."""
    lowest = min(attacks, key=lambda found: (found.accuracy, -found.thg))
    worse = not failed and accuracy < lowest.accuracy
    text = f"{_at(lowest)}: finds {_p(lowest.accuracy)}, but the chip that was read back has {_p(accuracy)}"
    return _explained("measured-chip", [text] if worse else [])


def of_plain_pytorch(accuracy: float, worst: Found, decisions: int) -> list[str]:
    """A flag if the worst chip's accuracy in plain PyTorch is another, by more than rounding explains."""
    apart = abs(accuracy - worst.accuracy)
    text = f"{_at(worst)}: the worst chip has {_p(worst.accuracy)}, but {_p(accuracy)} in plain PyTorch"
    return _explained("plain-pytorch", [text] if apart * decisions > 2 and apart > ROUNDING else [])


def _explained(section: str, flags: Iterable[str]) -> list[str]:
    return [f"{flag} (docs/flags.md#{section})" for flag in flags]


def _above_a_random_vertex(found: Found, vertex: float) -> Iterator[str]:
    if found.accuracy > vertex and not found.distribution:  # sampled chips do not search
        yield f"{_at(found)}: finds {_p(found.accuracy)}, but a random vertex has {_p(vertex)}"


def _vanishing_gradients(found: Found) -> Iterator[str]:
    if found.vanished > VANISHED:
        share = f"{_p(found.vanished)} of the mini-batches"
        yield f"{_at(found)}: gradients vanish (zero for every weight, or not finite, in {share})"


def _standing_still(found: Found) -> Iterator[str]:
    if found.unmoved:
        yield f"{_at(found)}: no gradient ever reached {_listed(found.unmoved)}"


def _of_sorted_data(found: Found) -> Iterator[str]:
    if found.sorted_steps:
        yield f"{_at(found)}: its steps saw few classes each, since the reference set comes sorted"


def _of_zeros(crossbar: Crossbar) -> Iterator[str]:
    if zeros := [name for name, scale in crossbar.full_scales().items() if scale == 0]:
        yield f"{_listed(zeros)}: all weights are zero, so is their full scale, and none may deviate"


def _digital(crossbar: Crossbar) -> Iterator[str]:
    coverage = crossbar.coverage()
    if coverage.share < COVERED:
        digital = sorted(coverage.digital, key=lambda name: -coverage.digital[name])
        yield f"only {coverage.share:.1%} of the values are programmed; digital and exact are {_listed(digital)}"
    met, parameters = crossbar.also_multiplied, dict(crossbar.net.named_parameters(remove_duplicate=False))
    exact = "multiplied with an input, but not programmed"
    if others := [name for name in met if name in parameters]:
        yield f"{_listed(others)}: {exact} (name them in arrays=)"
    if others := [name for name in met if name not in parameters]:
        yield f"{_listed(others)}: {exact} (if devices hold them, make them parameters, and name those in arrays=)"
    if also := crossbar.also_computed:
        yield f"{_listed(also)}: also computed with outside products, such as its norm, from what the chip holds"
    if crossbar.rounds_weights:
        yield "autocast within the network rounds its weights after their deviation, so some chips leave the box"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _rises_with_budget(found: Found) -> Iterator[str]:
    if found.members or found.distribution:
        return
    lowest = min(_own(found), key=lambda entry: entry["accuracy"])
    if _points(found.final_accuracy, lowest["accuracy"]) > RISE:
        yield (
            f"{_at(found)}: the accuracy rises with the budget, {_p(lowest['accuracy'])} after "
            f"{lowest['passes']:.0f} passes and {_p(found.final_accuracy)} at the end"
        )


def _members_disagree(found: Found) -> Iterator[str]:
    members = [member for member in found.members if member["accuracy"] is not None]
    if not members:
        return
    best, worst = (choose(members, key=lambda m: m["accuracy"]) for choose in (max, min))
    if _points(best["accuracy"], worst["accuracy"]) > DISAGREEMENT:
        clean = found.history[0]["accuracy"]
        hides = clean - best["accuracy"] < (clean - worst["accuracy"]) / 3
        yield (
            f"{_at(found)}: members disagree in the first round{' (masking?)' if hides else ''}: {best['member']} "
            f"finds {_p(best['accuracy'])}, {worst['member']} {_p(worst['accuracy'])}"
        )


def _attacks_disagree(attacks: Sequence[Found]) -> Iterator[str]:
    lowest: dict[tuple[float, str], Found] = {}  # of an attack's settings
    for found in attacks:
        if not found.distribution:
            before = lowest.get((found.thg, found.attack), found)
            lowest[found.thg, found.attack] = min(found, before, key=lambda f: f.accuracy)
    for one, other in combinations(lowest.values(), 2):
        if one.thg == other.thg and abs(_points(one.accuracy, other.accuracy)) > DISAGREEMENT:
            yield (
                f"attacks disagree at th_g {one.thg:g} (masking?): {one.attack} finds {_p(one.accuracy)}, "
                f"{other.attack} {_p(other.accuracy)}"
            )


def _rises_with_thg(attacks: Sequence[Found]) -> Iterator[str]:
    alike: dict[str, list[Found]] = {}  # the same attack with the same settings
    for found in attacks:
        if not found.distribution:
            alike.setdefault(f"{found.attack} {found.parameters}", []).append(found)
    for several in alike.values():
        attack = several[0].attack
        own = sorted((found.thg, min(entry["accuracy"] for entry in _own(found))) for found in several)
        pairs = ((one, other) for one, other in combinations(own, 2) if one[0] < other[0])
        (small, low), (large, high) = max(pairs, key=lambda p: p[1][1] - p[0][1], default=(own[0], own[0]))
        if _points(high, low) > POINTS:
            yield (
                f"{attack}: the accuracy that it finds rises with th_g, {_p(low)} at {small:g} and "
                f"{_p(high)} at {large:g}"
            )


def _less_on_some_weights(diagnosis: Mapping[str, Any]) -> Iterator[str]:
    on_all = diagnosis["accuracy"]
    for kind, accuracy in _on_some_weights(diagnosis):
        if _points(on_all, accuracy) > POINTS:
            yield f"an attack on {kind} finds {_p(accuracy)}, less than the {_p(on_all)} found on all"


def lower_elsewhere(record: Record, others: Iterable[Record]) -> list[str]:
    """A line for each attack that found more than another record has at the same or a smaller th_g.

    Args:
        record: of an evaluation; of sampled chips nothing is said, they are not a search.
        others: of the same training run: its own, and those of other evaluations.
    """
    same = (
        "model",
        "dataset",
        "data_digest",
        "samples",
        "full_scale",
        "weight_bits",
        "activation_bits",
        "tolerance",
    )
    settings = ("checkpoint", "layers", "exclude")
    found = [
        attack
        for other in others
        if all(getattr(other, key) == getattr(record, key) for key in same)
        and all(other.config.get(key) == record.config.get(key) for key in settings)
        and of_devices(other.config) == of_devices(record.config)
        and of_test_data(other.config) == of_test_data(record.config)
        and (
            not another_network(record, other)
            if other.kind == "train"
            else other.config.get("weights") == record.config.get("weights")
        )
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
                f"{_at(attack)}: {_p(attack.accuracy)}, but {lowest.attack} found {_p(lowest.accuracy)} at th_g "
                f"{lowest.thg:g} in another run"
            )
    return _explained("another-run", flags)


def _on_some_weights(diagnosis: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for layer in diagnosis.get("layers", []):
        if "lowest_alone" in layer:
            yield layer["array"], layer["lowest_alone"]
    for point in diagnosis.get("selective_write_verify") or []:
        these = f"the {100 * point['share']:g} % most important weights"
        yield these, point["only_these_move"]
        yield f"all but {these}", point["all_others_move"]


def _own(found: Found) -> list[dict[str, Any]]:
    """An attack's own results: not what it was given to start from, nor what had left the box until clamped."""
    return [e for e in found.history if not e.get("start") and e.get("magnitude", 0) <= 1.001]


def _at(found: Found) -> str:
    return f"{found.attack} at th_g {found.thg:g}"


def _points(high: float, low: float) -> float:
    return 100 * (high - low)


def _p(accuracy: float) -> str:
    return f"{accuracy:.2%}"
