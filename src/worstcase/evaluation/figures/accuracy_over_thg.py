"""Clean accuracy and lowest accuracy found, against th_g (the axes of the paper's Fig. 8)."""

from __future__ import annotations

from math import ceil
from textwrap import fill, shorten
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from worstcase.evaluation.figures.legend import legend_below

ONE = ["network", "dataset", "full_scale", "reference", "weights_perturbed", "reference_settings"]
FOUND, CERTIFIED, CLEAN = "attacked_accuracy", "certified_accuracy", "clean_accuracy"


def accuracy_over_thg(results: pd.DataFrame, scale: str = "") -> Figure:
    """Draw one colour per method: mean over seeds, a bar of one standard deviation, and a dot for each run.

    A run may hold attacks at several th_g. Of a seed the lowest at one th_g counts. If a method's runs
    have a certified accuracy, the band from there to the lowest accuracy found is filled: it holds the worst case.

    Args:
        results: rows of `worstcase.results_frame` with one network, data set, full scale, kind of devices and set
            of attacks with their settings; methods, th_g and seeds may differ.
        scale: a description that is added to the title.

    Raises:
        ValueError: there are no results, or several networks, data sets, full scales, kinds of devices or sets of
            attacks with their settings; or the runs of one method differ in more than th_g and seed.
    """
    attacks = results.groupby("folder").attack.agg(lambda names: ", ".join(dict.fromkeys(names)))
    run_with = (results.attack + results.attack_settings).groupby(results.folder).agg(lambda one: sorted(set(one)))
    settings = (
        results[ONE]
        .assign(attacks=results.folder.map(attacks), run_with=results.folder.map(run_with.map(str)))
        .drop_duplicates()
    )
    if len(settings) != 1:
        raise ValueError(
            "a figure shows one network, data set, full scale, kind of devices and set of attacks with their "
            f"settings, not {len(settings)}"
        )
    shared = ["network", "dataset", "full_scale", "reference", "attacks"]
    network, dataset, full_scale, reference, named = settings.iloc[0][shared]
    shown = results.assign(method=results.method.fillna("given weights"))
    trained = shown[["method", "network_settings", "method_settings"]].drop_duplicates()
    if len(pooled := trained.method[trained.method.duplicated()]):
        raise ValueError(f"the runs of {pooled.iloc[0]} differ in more than th_g and seed; name them apart")
    shown = shown.astype(dict.fromkeys((CLEAN, FOUND, CERTIFIED), "Float64"))
    shown = shown.assign(run=shown.seed.astype("string").fillna(shown.folder))
    runs = 100 * shown.groupby(["method", "thg", "run"])[[CLEAN, FOUND, CERTIFIED]].min().astype(float)

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    marks: dict[str, Any] = {}
    for color, (method, own) in enumerate(runs.groupby("method")):
        of = own.droplevel("method").groupby("thg")
        means, deviations = of.mean(), of.std().fillna(0)
        for column, style, label in (
            (CLEAN, "--", "without perturbation"),
            (FOUND, "-", f"lowest found ({named})"),
        ):
            label = f"{method}, {label}"
            y, spread = means[column], deviations[column]
            line = axes.errorbar(means.index, y, spread, color=f"C{color}", ls=style, capsize=3, label=label)
            marks[label] = line
            axes.plot(own.index.get_level_values("thg"), own[column], ".", color=f"C{color}", alpha=0.5)
        proven = own.dropna(subset=CERTIFIED).groupby("thg").mean()
        if len(proven):
            band = proven.index, proven[CERTIFIED], proven[FOUND]
            label = f"{method}, between certified and found"
            marks[label] = axes.fill_between(*band, color=f"C{color}", alpha=0.15, label=label)
    unit = "units of each layer's largest weight" if full_scale == "layer_max" else "weight units"
    seeds = sorted(results.seed.dropna().unique())
    each = runs.groupby(["method", "thg"]).size()
    count = f"{len(seeds)}" if each.min() == len(seeds) else f"{each.min()} to {each.max()}"
    axes.set_xlabel(f"write-verify bound th_g (in {unit})")
    axes.set_ylabel(f"accuracy on the {reference} split (%)")
    over = [f"{count} seeds: mean and standard deviation"] if len(seeds) > 1 else [f"seed {n}" for n in seeds]
    title = ", ".join([f"{network} on {dataset}", *over])
    axes.set_title(
        title + (f"\n({shorten(scale, 90, placeholder=' ...')})" if scale else ""),
        fontsize="medium",
        parse_math=False,
    )
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    names = [fill(label, 42) for label in marks]
    rows = ceil(sum(name.count("\n") + 1 for name in names) / 2)
    figure.set_figheight(4.6 + 0.18 * max(0, rows - 2))
    legend_below(figure, list(marks.values()), names, columns=2)
    return figure
