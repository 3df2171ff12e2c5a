"""Clean accuracy against what several attacks find, a row for each training method."""

from __future__ import annotations

import statistics
from textwrap import fill

from matplotlib.figure import Figure

Accuracies = dict[str, dict[str, list[float]]]
"""By method, by 'clean' or attack: the accuracies 0..1 of the seeds."""


def methods(table: Accuracies, title: str) -> Figure:
    """A row a method, the best under the ensemble on top: mean, one standard deviation, and each seed as a dot.

    Args:
        table: as `worstcase.report.method_tables` gives it.
        title: of the figure.
    """
    order = sorted(table, key=lambda method: statistics.mean(table[method].get("ensemble", [0.0])))
    names = [name for name in ("ensemble", "lwc", "flwc", "clean") if any(name in table[m] for m in order)]
    labels = {"clean": "as programmed", "flwc": "lowest found (flwc)", "lwc": "lowest found (lwc)"}
    figure = Figure(figsize=(7.0, 1.4 + 0.55 * len(order)), layout="constrained")
    axes = figure.subplots()
    for i, name in enumerate(names):
        rows = [row for row, method in enumerate(order) if name in table[method]]
        seeds = [[100 * a for a in table[order[row]][name]] for row in rows]
        heights = [row + 0.16 * ((len(names) - 1) / 2 - i) for row in rows]
        axes.errorbar(
            [statistics.mean(s) for s in seeds],
            heights,
            xerr=[statistics.stdev(s) if len(s) > 1 else 0.0 for s in seeds],
            fmt="Dov^"[i],
            color=("C3", "C1", "C4", "C0")[i],
            capsize=3,
            label=labels.get(name, f"lowest found ({name})"),
        )
        for height, s in zip(heights, seeds, strict=True):
            axes.plot(s, [height] * len(s), ".", color=("C3", "C1", "C4", "C0")[i], alpha=0.4)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("accuracy (%): mean and standard deviation over seeds")
    axes.set_title(fill(title, 75), fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(names), fontsize="small")
    return figure


def markdown(table: Accuracies) -> str:
    """The same numbers as a table to paste: mean ± standard deviation in percent."""
    order = sorted(table, key=lambda method: -statistics.mean(table[method].get("ensemble", [0.0])))
    names = [name for name in ("clean", "flwc", "lwc", "ensemble") if any(name in table[m] for m in order)]
    lines = ["| method | seeds | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for method in order:
        cells = [_cell(table[method].get(name)) for name in names]
        lines.append(f"| `{method}` | {len(table[method].get('clean', []))} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(accuracies: list[float] | None) -> str:
    if not accuracies:
        return "-"
    deviation = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * statistics.mean(accuracies):.2f}{deviation}"
