"""Draws a table as bars."""

from __future__ import annotations

from textwrap import shorten

import pandas as pd
from matplotlib.figure import Figure

from worstcase.report.rows import GATHERED


def bars(name: str, rows: pd.DataFrame, what: str) -> dict[str, Figure]:
    """A bar for each row, a dot for each seed, and a line for the paper's value. No figure for over 100 rows.

    Args:
        name: of the figure.
        rows: the result of `worstcase.report.rows.gather`, with fractions.
        what: the quantity, for the label of the axis.
    """
    if len(rows) > 100:
        return {}
    several = rows.scale.nunique() > 1
    labels = rows.drop(columns=GATHERED).agg(", ".join, axis=1)
    if several:
        labels += [f"\n({shorten(scale, 80, placeholder=' ...')})" if scale else "" for scale in rows.scale]
    figure = Figure(figsize=(8.0, 1.2 + (0.42 if several else 0.32) * len(rows)), layout="constrained")
    axes = figure.subplots()
    places, means, deviations = range(len(rows)), 100 * rows["mean"], 100 * rows.deviation.fillna(0)
    axes.barh(places, means, 0.7, xerr=deviations, color="C0", alpha=0.6, capsize=3)
    for place, values in zip(places, rows["each seed"], strict=True):
        axes.plot([100 * value for value in values], [place] * len(values), ".", color="C0")
    published = 100 * rows.paper.dropna()
    if len(published):
        axes.vlines(published, published.index - 0.4, published.index + 0.4, color="C3", lw=2, label="paper")
        figure.legend(loc="outside lower center", fontsize="small")
    axes.set_yticks(places, labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(-1, 102)
    axes.set_xlabel(f"{what} (%)\nmean, standard deviation, each seed")
    axes.grid(axis="x", alpha=0.3)
    return {name: figure}
