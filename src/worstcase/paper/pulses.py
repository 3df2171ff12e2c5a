"""Not in the paper: what is left of the accuracy where pulses are shared out among the weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from worstcase.paper.beside import beside_paper, rows_beside
from worstcase.report.rows import CLEAN
from worstcase.report.section import Section
from worstcase.text import cut, visible

WAYS = {
    "same": "the same th_g everywhere",
    "random": "at random",
    "first_and_last": "first and last array tighter",
    "magnitude": "by magnitude",
    "swim": "SWIM",
    "array": "ours, a th_g for each array",
    "weight": "ours, a th_g for each weight",
}
"""How pulses are shared out, in the order of the table."""
COLOURS = dict(zip(WAYS.values(), ("0.3", "C7", "C4", "C1", "C0", "C2", "C3"), strict=True))


def shared_pulses(results: pd.DataFrame) -> Section | None:
    settings = results.reference_settings.map(json.loads)
    found = beside_paper(results[[_shares_out(one) for one in settings]])
    found = found[found.attack != CLEAN]
    if found.empty:
        return None
    settings = found.reference_settings.map(json.loads)
    others = settings.map(lambda one: {name: v for name, v in one.items() if name not in ("pulses", "share")})
    found = found.assign(
        number=settings.str["pulses"].astype(float),
        order=settings.str["share"].map(list(WAYS).index),
        reference_settings=others.map(json.dumps).astype("string"),
    )
    several = found.groupby(["shown", "method"]).trained_thg.transform("nunique") > 1
    trained_for = several & ~found.trained_once.fillna(False)
    found["method"] = found.method.mask(trained_for, found.method + found.trained_thg.map(" for th_g {:g}".format))
    found = found.sort_values(["shown", "method", "number", "order"], kind="stable")
    found = found.assign(
        pulses=found.number.map("{:g}".format), **{"shared out": settings[found.index].str["share"].map(WAYS)}
    )
    rows = rows_beside(found, ["network", "method", "pulses", "shared out", "attack"])
    caption = (
        "The lowest accuracy found where a weight takes so many pulses on average, by how they are shared out. "
        "SWIM ranks weights by the second derivative times the squared weight (Yan et al., DAC 2022)."
    )
    figures = {"swim": _over_pulses(rows)} if rows.pulses.nunique() > 1 else {}
    return Section("swim", "Pulses shared out among the weights", caption, rows, found, figures)


def _shares_out(settings: Mapping[str, Any]) -> bool:
    """Whether pulses are shared out in a known way; a foreign record may hold anything."""
    pulses = settings.get("pulses")
    return isinstance(pulses, int | float) and settings.get("share") in list(WAYS)


def _over_pulses(rows: pd.DataFrame) -> Figure:
    """A panel for each network, method, attack and scale, a line for each way, error bars over seeds."""
    panels = list(rows.groupby(["network", "method", "attack", "scale"], sort=False))
    figure = Figure(figsize=(6.4, 0.8 + 3.2 * len(panels)), layout="constrained")
    drawn = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (names, own) in zip(drawn, panels, strict=True):
        for way, line in own.groupby("shared out", sort=False):
            mean, deviation = 100 * line["mean"], 100 * line.deviation.fillna(0)
            style = {"color": COLOURS[way], "marker": ".", "capsize": 3}
            axes.errorbar(line.pulses.astype(float), mean, deviation, label=way, **style)
        axes.set_title(cut(visible(", ".join(filter(None, names))), 80), fontsize="medium", parse_math=False)
        axes.set_xlabel("programming pulses a weight, on average")
        axes.set_ylabel("lowest accuracy found (%)")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
