"""What an attack found, in plain data, and the shapes by which pydantic checks records. Needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

CHECKED = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # by pydantic, when a record is read
Share = Annotated[float, Ge(0), Le(1)]
Number = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Name = Annotated[str, StringConstraints(pattern=r"^[^$]*$", max_length=200)]
"""Names of other things than arrays are titles of figures, where a dollar sign would start a formula."""
FileName = Annotated[str, StringConstraints(pattern=r"^([^/\\.]|\.[^/\\.]|\.\.[^/\\])[^/\\]*$")]
"""Of a file in the record's own folder."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]


class Shape:
    """In a field's annotation: the stricter type that pydantic checks instead of the field's own."""

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(self.shape)


class Open(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]


class _MayHave(Open, total=False):
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


class Member(Open):
    """One of an ensemble's attacks."""

    member: Name
    accuracy: Share | None
    """Accuracy that it found on its own, in the first round."""
    lowest: Share | None
    passes: Number


class Percentile(Open):
    """K-th percentile performance, with the ends of its interval."""

    percent: Annotated[float, Gt(0), Le(100)]
    accuracy: Share
    low: Share | None
    high: Share | None


class Distribution(Open):
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


class Parameters(Open, total=False):
    """An attack's settings."""

    steps: Positive
    epochs: Positive
    lr: Annotated[float, Gt(0)]
    c_range: Annotated[list[float], MinLen(1)]
    project: str
    instances: Positive


# ---- the bound from below


@dataclass(kw_only=True)
class Found:
    """What one attack found. Accuracies are fractions 0..1; a pass is one forward or one backward."""

    __pydantic_config__: ClassVar = CHECKED

    attack: Name
    parameters: Annotated[dict[str, Any], Shape(Parameters)]
    """The attack's settings."""
    thg: Number
    accuracy: Share
    """The lowest over all feasible perturbations that the attack scored, including zero."""
    final_accuracy: Share
    """Accuracy of the last iterate, as the paper would report it."""
    heldout_accuracy: Share | None = None
    """Accuracy on one half of the reference set, of a chip that a separate attack found on the other half."""
    attacked_half_accuracy: Share | None = None
    """Accuracy of that chip on the half that was attacked."""
    max_relative_perturbation: Number
    """The largest absolute deviation in units of the full scale: at most thg."""
    feasible: bool
    seconds: Number
    passes: Number
    seed: Seed
    history: Annotated[list[dict[str, Any]], Shape(Annotated[list[HistoryEntry], MinLen(1)])]
    """Accuracy against passes, one entry for each scored perturbation."""
    vanished: Share = 0.0
    """Share of the gradients that were zero in every weight that may move, or not finite. There is one gradient
    for each mini-batch with right answers."""
    unmoved: list[str] = field(default_factory=list)
    """Arrays whose gradient was zero for every weight in every mini-batch."""
    sorted_steps: bool = False
    """Whether the mini-batches of its steps had far fewer classes than the reference set."""
    members: Annotated[list[dict[str, Any]], Shape(list[Member])] = field(default_factory=list)
    """For an ensemble: each member's accuracy on its own, its lowest accuracy, and its passes."""
    distribution: Annotated[dict[str, Any] | None, Shape(Distribution | None)] = None
    """For Monte Carlo: what the sampled chips say about all chips, see `worstcase.attacks.MonteCarlo`."""


def at_most(share: float) -> str:
    """An upper bound in percent with two digits, rounded up, so that a small one does not look like none.

    Example:
        >>> at_most(0.00002996), at_most(0.0149), at_most(0.95)
        ('0.0030%', '1.5%', '95%')
    """
    percent = 100 * Decimal(share)
    digits = Decimal(1).scaleb(percent.adjusted() - 1)
    return f"{percent.quantize(digits, ROUND_CEILING):f}%"
