"""Clean accuracy and what several attacks find, with a row for each training method."""

from __future__ import annotations

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

STYLES = {"ensemble": ("D", "C3"), "lwc": ("o", "C1"), "flwc": ("v", "C4"), "clean": ("^", "C0")}
"""Marker and colour of each attack and of clean accuracy, the strongest attack first."""


def methods(results: pd.DataFrame, title: str) -> Figure:
    """Draw a row for each method: mean, one standard deviation, and a dot for each seed.

    The best method under the ensemble is on top.

    Args:
        results: with the columns method, attack ('clean': as programmed) and attacked_accuracy, one row per seed.
        title: of the figure.
    """
    percents = 100 * results.set_index(["attack", "method"]).attacked_accuracy.astype(float)
    means = percents.groupby(level=["attack", "method"]).mean().unstack("attack")
    names = [name for name in STYLES if name in means]
    order = means.sort_values(names, na_position="first").index
    height = pd.Series(range(len(order)), order)
    figure = Figure(figsize=(7.0, 1.4 + 0.55 * len(order)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        marker, color = STYLES[name]
        own = percents[name]
        of = own.groupby("method")
        heights = height + 0.16 * ((len(names) - 1) / 2 - i)
        axes.errorbar(
            (mean := of.mean().reindex(order).dropna()),
            heights[mean.index],
            xerr=of.std().fillna(0)[mean.index],
            fmt=marker,
            color=color,
            capsize=3,
            label="as programmed" if name == "clean" else f"lowest found ({name})",
        )
        axes.plot(own, heights[own.index], ".", color=color, alpha=0.4)
    axes.set_yticks(height, [fill(name, 34) for name in order], parse_math=False)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy (%): mean and standard deviation over seeds")
    figure.suptitle(fill(title, 75), fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize="small")
    return figure
