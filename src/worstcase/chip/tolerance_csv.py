"""A tolerance from a CSV file.

    # measured on our test chip, 2026-05
    # full_scale_uS = 25
    conductance_uS,lower_uS,upper_uS
    0,0,0.4
    12.5,-0.6,0.5
    25,-1.0,0.5

The columns are ``conductance`` and either ``lower`` and ``upper`` or ``sigma``: write-verify then stops at some
standard deviations. Values are fractions of the largest conductance; a name that ends in ``_percent`` or ``_uS``
says another unit, and micro-siemens need a line ``# full_scale_uS = NUMBER``. Other lines that begin with # are
left out. Needs no PyTorch.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from worstcase.chip.tolerance import SIGMAS, Tolerance

NAMES = ("conductance", "lower", "upper", "sigma")
UNITS = ("", "_percent", "_uS")


def read(file: Path, sigmas: float | None = None) -> Tolerance:
    """Read a tolerance.

    Args:
        file: see the module.
        sigmas: at how many standard deviations write-verify stops; None: 2. Only for a column ``sigma``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no tolerance; the message names the file and the line.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no table of a tolerance at {file}")
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")  # a comment may be in any encoding
        return _read(text.splitlines(), sigmas)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file}{', ' if str(error).startswith('line ') else ': '}{error}") from None


def _read(lines: list[str], sigmas: float | None) -> Tolerance:
    full_scale = next((m[1] for line in lines if (m := re.match(r"\s*#\s*full_scale_uS\s*=\s*(\S+)", line))), None)
    rows = [
        (number, next(csv.reader([line])))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise ValueError("it has no header; conductance,lower,upper or conductance,sigma")
    (_, header), *rows = rows
    factors = dict(_columns([name.strip() for name in header], full_scale))
    table: dict[str, list[float]] = {name: [] for name in factors}
    for number, row in rows:
        if len(row) != len(factors):
            raise ValueError(f"line {number}: {len(row)} values for {len(factors)} columns")
        for (name, factor), text in zip(factors.items(), row, strict=True):
            table[name].append(_value(name, text, factor, number))
    for (number, _), one, other in zip(rows[1:], table["conductance"], table["conductance"][1:], strict=False):
        if one >= other:
            raise ValueError(f"line {number}: conductance must rise from row to row")
    if "sigma" in table:
        return Tolerance.of_sigma(**table, sigmas=SIGMAS if sigmas is None else sigmas)
    if sigmas is not None:
        raise ValueError(f"sigmas={sigmas:g} is for a column sigma; this one has lower and upper")
    return Tolerance(**table)


def _columns(header: list[str], full_scale: str | None) -> Iterator[tuple[str, float]]:
    """Each column's name without its unit, and the unit as a fraction of the largest conductance."""
    known = {name + unit: (name, unit) for name in NAMES for unit in UNITS}
    names = [known[name][0] if name in known else name for name in header]
    if sorted(names) not in (["conductance", "lower", "upper"], ["conductance", "sigma"]):
        raise ValueError(
            f"columns {', '.join(header)}: must be conductance, and lower and upper, or sigma; each may end in "
            "_percent or _uS"
        )
    for column in header:
        name, unit = known[column]
        if unit == "_uS":
            if full_scale is None:
                raise ValueError(f"{column} needs a line '# full_scale_uS = NUMBER', the largest conductance")
            yield name, 1 / _full_scale(full_scale)
        else:
            yield name, 0.01 if unit else 1.0


def _full_scale(text: str) -> float:
    try:
        full_scale = float(text)
    except ValueError:
        full_scale = math.nan
    if not (math.isfinite(full_scale) and full_scale > 0):
        raise ValueError(f"full_scale_uS = {text}: must be a number above 0")
    return full_scale


def _value(name: str, text: str, factor: float, line: int) -> float:
    low, high = {"conductance": (0, 1), "lower": (-1, 0), "upper": (0, 1), "sigma": (0, 1)}[name]
    try:
        value = round(float(text) * factor, 15)  # 7 percent is 0.07
    except ValueError:
        raise ValueError(f"line {line}: {name} {text.strip()!r} is no number") from None
    if not low <= value <= high:
        raise ValueError(
            f"line {line}: {name} {text.strip()} is not from {low} to {high} of the largest conductance"
        )
    return value
