"""A legend of names that somebody else gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def legend_below(figure: Figure, marks: Sequence[Any], names: Sequence[str], *, columns: int) -> None:
    """Add a legend below the axes. A name is shown as it is: no formula, and not left out for an underscore."""
    legend = figure.legend(marks, [""] * len(marks), loc="outside lower center", ncols=columns, fontsize="small")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
