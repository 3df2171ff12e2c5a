"""Checks of settings: one line that says what was wrong and what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

SEEDS = 2**32
"""Seeds are 0 or more, and below this."""


def whole(name: str, value: Any, least: int = 1, most: int | None = None, *, also: str = "") -> None:
    """Check that a value is a whole number (an int, not a bool) from least to most.

    Args:
        name: of the setting, as the user knows it.
        value: what it was set to.
        least: the smallest allowed value.
        most: the largest allowed value; None: no limit.
        also: end of the message: what else is allowed, or the unit.

    Raises:
        ValueError: it is not.

    Example:
        >>> whole("steps", 10)
        >>> whole("steps", 10.0)
        Traceback (most recent call last):
        ValueError: steps=10.0: must be a whole number, 1 or more
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and least <= value and (most is None or value <= most):
        return
    if most is not None:
        allowed = f"a whole number from {least} to {most}"
    else:
        allowed = f"{least} or more" if is_whole else f"a whole number, {least} or more"
    raise ValueError(_message(name, value, allowed, also))


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    also: str = "",
) -> None:
    """Check that a value is a finite number (an int or float, not a bool) within limits.

    Args:
        name: of the setting, as the user knows it.
        value: what it was set to.
        low: the smallest allowed value.
        high: the largest allowed value.
        above: like low, but itself not allowed.
        below: like high, but itself not allowed.
        also: end of the message: what else is allowed, or the unit.

    Raises:
        ValueError: it is not.

    Example:
        >>> number("lr", 1, above=0)
        >>> number("alpha", 1.5, low=0, high=1)
        Traceback (most recent call last):
        ValueError: alpha=1.5: must be 0..1
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max  # an int may be larger than any float
    if is_finite and low <= value <= high and above < value < below:
        return
    if math.isfinite(low) and math.isfinite(high):
        allowed = f"{low:g}..{high:g}"
    else:
        limits = {"above {:g}": above, "{:g} or more": low, "below {:g}": below, "{:g} or less": high}
        texts = [text.format(limit) for text, limit in limits.items() if math.isfinite(limit)]
        allowed = " and ".join(texts if is_finite else [*texts, "finite"])
    if not is_number:
        allowed = f"a number, {allowed}"
    raise ValueError(_message(name, value, allowed, also))


def choice(name: str, value: Any, allowed: Iterable[str | None]) -> None:
    """Check that a value is one of those that are allowed.

    Raises:
        ValueError: it is not.

    Example:
        >>> choice("certificate", "none", ("interval", "linear", None))
        Traceback (most recent call last):
        ValueError: certificate='none': must be interval, linear or None
    """
    *others, last = allowed
    if value not in [*others, last]:
        raise ValueError(f"{name}={value!r}: must be {', '.join(map(str, others))} or {last}")


def check_seed(name: str, value: Any) -> None:
    """Check that a seed is a whole number below 2^32: PyTorch's CPU generator uses no more bits.

    Raises:
        ValueError: it is not.
    """
    whole(name, value, least=0, most=SEEDS - 1)


def _message(name: str, value: Any, allowed: str, also: str) -> str:
    if hasattr(value, "item") and not isinstance(value, int | float):  # of NumPy or PyTorch
        also = f"{also}, and of Python's own: .item() makes it so".removeprefix(", ")
    return f"{name}={value!r}: must be {allowed}" + (f", {also}" if also else "")
