"""The first part of the page: every finished run, whether or not the paper has its network."""

from __future__ import annotations

import json
from collections import Counter
from math import ceil
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from worstcase.evaluation.figures.legend import legend_below
from worstcase.report.rows import GIVEN, differing
from worstcase.report.section import Section
from worstcase.text import cut, visible

NAMED = 19
"""How many methods have a colour and marker of their own; the others share one."""
PANELS = 6
"""How many networks are drawn against th_g: those with the most results."""
ORDER = ["network", "dataset", "method", "thg", "seed", "attack"]


def your_runs(results: pd.DataFrame) -> Section:
    caption = (
        "Every finished run, with what each of its attacks found. In the first picture, a dot is one attack on "
        "one run. On the diagonal the attack changed nothing; the farther below it, the more accuracy the worst "
        "chip loses. In the second picture, a line is one network, on one set of samples and with one kind of "
        "devices. It starts at the accuracy as programmed and "
        "goes through the lowest accuracy found at each th_g. A bar reaches from there down to the highest "
        "certified accuracy."
    )
    found = results.assign(method=results.method.fillna(GIVEN)).sort_values(ORDER, kind="stable")
    found["style"], styles = _styles(found.method)
    figures = {"runs": _attacked(found, styles), "runs-thg": _over_thg(found, styles)}
    return Section("runs", "Your runs", caption, _rows(found), results, figures)


def _rows(found: pd.DataFrame) -> pd.DataFrame:
    differ = differing(found, ["network", "dataset", "method", "attack"])
    rows = pd.DataFrame(
        {
            "network": found.network,
            "data": found.dataset,
            "method": found.method,
            "th_g": found.thg.map("{:g}".format),
            "seed": found.seed.astype("string").fillna("-"),
            "attack": found.attack,
            "unit": "%",
            "clean": found.clean_accuracy,
            "attacked": found.attacked_accuracy,
            "certified": found.certified_accuracy,
            "flags": found["flags"],
        }
    )
    trained = found.trained_thg.mask(found.trained_once.fillna(False))
    if (trained.notna() & (trained != found.thg)).any():
        rows.insert(4, "trained for", trained.map("{:g}".format, na_action="ignore").astype("string").fillna("-"))
    if found.chip_accuracy.notna().any():
        rows.insert(len(rows.columns) - 1, "read back", found.chip_accuracy)
    return rows.assign(**{"differs in": differ}) if (differ != "").any() else rows


def _styles(methods: pd.Series) -> tuple[pd.Series, list[dict[str, Any]]]:
    """The index of each result's style, and the colour, marker and label of each style."""
    ranked = [method for method, _ in Counter(methods).most_common()]
    own, shared = sorted(ranked[:NAMED]), ranked[NAMED:]
    styles = [
        {"color": f"C{number % 10}", "marker": "o^"[number // 10], "label": cut(visible(method), 40)}
        for number, method in enumerate(own)
    ]
    if shared:
        styles.append({"color": "black", "marker": "D", "label": f"{len(shared)} other methods"})
    return methods.map({method: number for number, method in enumerate(own)}).fillna(len(own)), styles


def _attacked(found: pd.DataFrame, styles: list[dict[str, Any]]) -> Figure:
    """Lowest accuracy found against clean accuracy, one colour per method."""
    figure = Figure(figsize=(7.0, 4.8 + _height_of_legend(styles)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], "--", color="gray", lw=1)
    for number, of in found.groupby("style"):
        dots: dict[str, Any] = {"ls": "", "ms": 7, "mec": "white", "mew": 0.5, "alpha": 0.75, "clip_on": False}
        axes.plot(100 * of.clean_accuracy, 100 * of.attacked_accuracy, **dots, **styles[int(number)])
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("accuracy as programmed (%)")
    axes.set_ylabel("lowest accuracy found (%)")
    axes.grid(alpha=0.3)
    _add_legend(figure, styles)
    return figure


def _weights(found: pd.DataFrame) -> pd.Series:
    """What tells whose weights they are: the training; of given ones their digest; else the evaluation alone."""
    digests = found.network_settings.map(lambda settings: json.loads(settings).get("weights"))
    return found.training.fillna(digests.astype("string")).fillna(found.folder)


def _over_thg(found: pd.DataFrame, styles: list[dict[str, Any]]) -> Figure:
    """One panel per network and data set, with a line for each training, from its accuracy as programmed."""
    panels = sorted(found.groupby(["network", "dataset", "full_scale"]), key=lambda one: -len(one[1]))[:PANELS]
    figure = Figure(figsize=(7.0, 0.4 + 3.4 * len(panels) + _height_of_legend(styles)), layout="constrained")
    drawn = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, ((network, dataset, full_scale), of) in zip(drawn, panels, strict=True):
        for _, own in of.groupby([_weights(of), "network_settings", "reference_settings"]):
            best_known = {"attacked_accuracy": "min", "certified_accuracy": "max"}
            by_thg = 100 * own.groupby("thg").agg(best_known).astype(float)
            lowest = pd.Series({0.0: 100 * own.clean_accuracy.min()} | by_thg.attacked_accuracy.to_dict())
            line: dict[str, Any] = {"lw": 1, "ms": 5, "alpha": 0.75, "clip_on": False}
            style = styles[int(own["style"].iloc[0])]
            axes.plot(lowest, **line, **style)
            proven = by_thg.dropna()
            ends = proven.certified_accuracy, proven.attacked_accuracy
            axes.vlines(proven.index, *ends, color=style["color"], lw=3, alpha=0.3)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 100)
        axes.set_title(cut(visible(f"{network}, {dataset}"), 60), fontsize="medium", parse_math=False)
        unit = "units of each layer's largest weight" if full_scale == "layer_max" else "weight units"
        axes.set_xlabel(f"th_g (in {unit})")
        axes.set_ylabel("lowest accuracy found (%)")
        axes.grid(alpha=0.3)
    _add_legend(figure, styles)
    return figure


def _columns(styles: list[dict[str, Any]]) -> int:
    return 4 if max(len(style["label"]) for style in styles) <= 16 else 2


def _height_of_legend(styles: list[dict[str, Any]]) -> float:
    return 0.2 * ceil(len(styles) / _columns(styles))


def _add_legend(figure: Figure, styles: list[dict[str, Any]]) -> None:
    marks = [Line2D([], [], ls="", color=style["color"], marker=style["marker"]) for style in styles]
    legend_below(figure, marks, [style["label"] for style in styles], columns=_columns(styles))
