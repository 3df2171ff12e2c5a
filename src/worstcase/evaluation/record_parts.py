"""The types of what a record's fields contain. A record is checked against them when it is read.

Further keys are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Gt, Le, MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

from worstcase.found import Count, Name, Number, Open, Positive, Seed, Share

# ---- certificates


class _Proven(Open):
    """What no chip in the box of a th_g is below."""

    method: Name
    thg: Number
    accuracy: Share
    seconds: Number


class Proven(_Proven, total=False):
    note: str | None


class ProvenUpTo(Open):
    """The largest th_g at which so much is proven by intervals."""

    accuracy: Share
    thg: Number | None


# ---- a chip that was read back


class Again(Open):
    """Which weights to program again, so that the chip keeps an accuracy; see `worstcase.reprogram`."""

    to_keep: Share
    accuracy: Share
    weights: Count | None
    file: str


class _Measured(Open):
    """A chip that was read back."""

    file: str | None
    """Relative to the record; None: it was given in Python."""
    accuracy: Share
    failed: Count
    """Weights outside the box of the largest th_g."""
    failed_by_array: dict[str, Count]


class Measured(_Measured, total=False):
    again: Again


def standing(accuracy: float, failed: int, certified: float | None, attacked: float) -> str:
    """Where a chip that was read back stands, beside what is proven and what was found.

    Example:
        >>> standing(0.9, 0, None, 0.8)
        'not below the worst chip found'
    """
    if accuracy >= attacked:
        return "not below the worst chip found"
    if not failed:
        return "below the worst chip found, though all its weights are in the box"
    if accuracy >= (certified or 0.0):
        return "below the worst chip found, as weights outside the box allow"
    return "below what is proven, as weights outside the box allow"


def outside(failed_by_array: Mapping[str, int]) -> str:
    """How many weights of a chip are outside the box, and of which arrays.

    Example:
        >>> outside({"fc1.weight": 2, "fc2.weight": 0})
        '2 weights outside the box (fc1.weight 2)'
    """
    some = sorted(((name, n) for name, n in failed_by_array.items() if n), key=lambda one: -one[1])
    if not some:
        return "no weight outside the box"
    named = ", ".join(f"{name} {n:,}" for name, n in some[:4]) + (f" and {len(some) - 4} more" if some[4:] else "")
    total = sum(n for _, n in some)
    return f"{total:,} weight{'s' * (total > 1)} outside the box ({named})"


# ---- the worst chip, explained


ByClass = TypedDict(  # "class" is a keyword in Python
    "ByClass",
    {"class": Count, "samples": Count, "clean_right": Count, "right": Count, "answers": Count},
)
"""Counts for one class: its samples, those answered right, and the worst chip's answers that are this class."""


class Confusion(Open):
    matrix: list[list[Count]] | None
    """A row for each true class, a column for each answer of the worst chip; None for more than 20 classes."""
    by_class: list[ByClass]


class Answers(Open):
    answers: Count
    mean: Share | None
    counts: Annotated[list[Count], MinLen(1)]


class Confidence(Open):
    right: Answers
    wrong: Answers


class Chips(Open):
    clean: Confidence
    worst: Confidence


class Moved(Open):
    weights: Positive
    mean: Share
    unmoved: Share
    at_bound: Share


class MovedInAll(Moved):
    counts: Annotated[list[Count], MinLen(1)]


class AttackedAlone(Moved, total=False):
    accuracy_of_its_part: Share
    lowest_alone: Share


class MovedInLayer(AttackedAlone):
    array: str


class Selected(Open):
    """A set of the most important weights."""

    share: Annotated[float, Gt(0), Le(1)]
    weights: Positive
    only_these_move: Share
    all_others_move: Share


class Diagnosis(Open):
    thg: Number
    budget: Number | None
    samples: Positive
    clean_accuracy: Share
    accuracy: Share
    confusion: Confusion
    confidence: Chips
    perturbation: MovedInAll
    layers: Annotated[list[MovedInLayer], MinLen(1)]
    selective_write_verify: list[Selected] | None


# ---- devices


class Table(Open):
    """A tolerance by conductance, see `worstcase.Tolerance`."""

    conductance: list[float]
    lower: list[float]
    upper: list[float]


class Spread(Open):
    least: Number
    mean: Number
    largest: Number


class OfWeights(Open):
    """th_g of each weight, in a file; see `worstcase.chip.tolerance_file`."""

    file: str
    digest: Name
    largest: Number
    by_array: dict[str, Spread]


Tolerances = Table | OfWeights | dict[str, Number | Table]
"""One, or several by patterns of arrays' names."""


class DeviceMapping(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]  # they build the Python class

    pair: bool
    device_bits: Positive | None
    cut_off: bool


# ---- the configuration


class Built(Open, total=False):
    """A network, a data set or a method: its class and arguments."""

    _target_: str


class Model(Open, total=False):
    net: Built | None
    width: Annotated[float, Gt(0)]
    variant: str
    weight_bits: Positive | None
    activation_bits: Positive | None


class Dataset(Built, total=False):
    data_dir: str | None
    limit: Positive | None


class Method(Built, total=False):
    monitor: str


class Devices(Open, total=False):
    arrays: list[str]
    mapping: DeviceMapping


class Config(Devices, total=False):
    thg: Number | list[Number] | Tolerances
    full_scale: str
    layers: list[str]
    exclude: list[str]
    seed: Seed
    data_dir: str
    net: str | None
    model: Model
    dataset: Dataset
    method: Method
    run: str | None
    checkpoint: str | None
    weights: str | None
    chip: str | None


class TrainedModel(Open):
    net: Built
    weight_bits: Positive | None
    activation_bits: Positive | None


class TrainingConfig(Devices):
    """The settings that rebuild a training's network and data."""

    thg: Number | Tolerances
    full_scale: str
    layers: list[str]
    exclude: list[str]
    seed: Seed
    data_dir: str
    net: str | None
    model: TrainedModel
    dataset: Dataset


class Training(Open):
    config: TrainingConfig


def contradiction(diagnosis: dict[str, Any], thgs: set[float]) -> str:
    """What is inconsistent in a diagnosis whose parts have the right types; empty if nothing is."""
    matrix = diagnosis["confusion"]["matrix"]
    if matrix is not None and not (matrix and all(len(row) == len(matrix) for row in matrix)):
        return "confusion.matrix: must be a square"
    alone = [{"lowest_alone", "accuracy_of_its_part"} & layer.keys() for layer in diagnosis["layers"]]
    if any(len(keys) != len(alone[0]) for keys in alone) or len(alone[0]) == 1:
        return "layers: some are attacked alone and some are not"
    if (diagnosis["selective_write_verify"] or alone[0]) and diagnosis["budget"] is None:
        return "budget: must be a number where parts were attacked"
    if diagnosis["thg"] not in thgs:
        return "thg: no attack used it"
    return ""
