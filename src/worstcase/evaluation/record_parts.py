"""The types of what a record's fields contain. A record is checked against them when it is read.

Further keys are allowed.
"""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

Share = Annotated[float, Ge(0), Le(1)]
Number = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Name = Annotated[str, StringConstraints(pattern=r"^[^$]*$", max_length=200)]
"""Names are shown in figures, where a dollar sign would start a formula."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]


class Shape:
    """In a field's annotation: the stricter type that pydantic checks instead of the field's own."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.shape)


class _Open(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


# ---- attacks


class _MayHave(_Open, total=False):
    start: bool
    """Whether the perturbation was given to the attack, not found by it."""
    c: Annotated[float, Gt(0)]
    """The constant c of LWC."""
    magnitude: Number
    """The largest deviation before it was projected, in units of the bound."""


class HistoryEntry(_MayHave):
    """One scored perturbation of an attack."""

    passes: Number
    accuracy: Share


class Member(_Open):
    """One of an ensemble's attacks."""

    member: Name
    accuracy: Share | None
    """Accuracy that it found on its own, in the first round."""
    lowest: Share | None
    passes: Number


class Percentile(_Open):
    """K-th percentile performance, with the ends of its interval."""

    percent: Annotated[float, Gt(0), Le(100)]
    accuracy: Share
    low: Share | None
    high: Share | None


class Distribution(_Open):
    """What sampled chips say about all chips."""

    instances: Positive
    first: Count
    sampler: Name
    mean: Share
    deviation: Number | None
    minimum: Share
    kpp: list[Percentile]
    unseen: Share
    infeasible: Count
    accuracies: Annotated[list[Share], MinLen(1)]


class Parameters(_Open, total=False):
    """An attack's settings."""

    steps: Positive
    epochs: Positive
    lr: Annotated[float, Gt(0)]
    c_range: Annotated[list[float], MinLen(1)]
    project: str
    instances: Positive


# ---- the bound from below


class Proven(_Open):
    """What no chip in the box of a th_g is below."""

    method: Name
    thg: Number
    accuracy: Share
    seconds: Number


# ---- the worst chip, explained


ByClass = TypedDict(  # "class" is a keyword in Python
    "ByClass",
    {"class": Count, "samples": Count, "clean_right": Count, "right": Count, "answers": Count},
)
"""Counts for one class: its samples, those answered right, and the worst chip's answers that are this class."""


class Confusion(_Open):
    matrix: list[list[Count]] | None
    """A row for each true class, a column for each answer of the worst chip; None for more than 20 classes."""
    by_class: list[ByClass]


class Answers(_Open):
    answers: Count
    mean: Share | None
    counts: Annotated[list[Count], MinLen(1)]


class Confidence(_Open):
    right: Answers
    wrong: Answers


class Chips(_Open):
    clean: Confidence
    worst: Confidence


class Moved(_Open):
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
    array: Name


class Selected(_Open):
    """A set of the most important weights."""

    share: Annotated[float, Gt(0), Le(1)]
    weights: Positive
    only_these_move: Share
    all_others_move: Share


class Diagnosis(_Open):
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


# ---- the configuration


class Built(_Open, total=False):
    """A network, a data set or a method: its class and arguments."""

    _target_: str


class Model(_Open, total=False):
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


class Config(_Open, total=False):
    thg: Number | list[Number]
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


class TrainedModel(_Open):
    net: Built
    weight_bits: Positive | None
    activation_bits: Positive | None


class TrainingConfig(_Open):
    """The settings that rebuild a training's network and data."""

    thg: Number
    full_scale: str
    layers: list[str]
    exclude: list[str]
    seed: Seed
    data_dir: str
    net: str | None
    model: TrainedModel
    dataset: Dataset


class Training(_Open):
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
