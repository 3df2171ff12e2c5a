"""Clean and lowest found accuracy against th_g (the axes of the paper's Fig. 8), from results alone."""

from __future__ import annotations

from textwrap import shorten

import pandas as pd
from matplotlib.figure import Figure

ONE = ["network", "dataset", "full_scale", "reference"]
FOUND, CERTIFIED, CLEAN = "attacked_accuracy", "certified_accuracy", "clean_accuracy"


def accuracy_over_thg(results: pd.DataFrame, scale: str = "") -> Figure:
    """One colour a method: mean over seeds, a bar of one standard deviation, and each run as a dot.

    A run may hold attacks at several th_g, as an evaluation over a list has them; of several attacks at one th_g
    the lowest counts. Where a method's runs have a certified accuracy, the band from there to the lowest found is
    filled: in it lies the worst case.

    Args:
        results: as `worstcase.results_frame` gives them, of one network, data set, full scale and set of attacks;
            methods, th_g and seeds may differ.
        scale: what else they are of, said in the title.

    Raises:
        ValueError: there are none, or they are of several networks, data sets, full scales or attacks.
    """
    attacks = results.groupby("folder").attack.agg(lambda names: ", ".join(dict.fromkeys(names)))
    settings = results[ONE].assign(attacks=results.folder.map(attacks)).drop_duplicates()
    if len(settings) != 1:
        raise ValueError(f"one network, data set, full scale and set of attacks is drawn, not {len(settings)}")
    network, dataset, full_scale, reference, named = settings.iloc[0]
    shown = results.assign(method=results.method.fillna("given weights"))
    shown = shown.astype(dict.fromkeys((CLEAN, FOUND, CERTIFIED), "Float64"))
    runs = 100 * shown.groupby(["method", "thg", "folder"])[[CLEAN, FOUND, CERTIFIED]].min().astype(float)

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for color, (method, own) in enumerate(runs.groupby("method")):
        of = own.droplevel("method").groupby("thg")
        means, deviations = of.mean(), of.std().fillna(0)
        for column, style, label in (
            (CLEAN, "--", "without perturbation"),
            (FOUND, "-", f"lowest found ({named})"),
        ):
            label = f"{method}, {label}"
            y, spread = means[column], deviations[column]
            axes.errorbar(means.index, y, spread, color=f"C{color}", ls=style, capsize=3, label=label)
            axes.plot(own.index.get_level_values("thg"), own[column], ".", color=f"C{color}", alpha=0.5)
        proven = own.dropna(subset=CERTIFIED).groupby("thg").mean()
        if len(proven):
            band = proven.index, proven[CERTIFIED], proven[FOUND]
            axes.fill_between(*band, color=f"C{color}", alpha=0.15, label=f"{method}, between certified and found")
    unit = "each layer's largest weight" if full_scale == "layer_max" else "1"
    seeds = sorted(results.seed.dropna().unique())
    axes.set_xlabel(f"write-verify bound th_g (in units of {unit})")
    axes.set_ylabel(f"accuracy on the {reference} split (%)")
    over = [f"{len(seeds)} seeds: mean and standard deviation"] if len(seeds) > 1 else [f"seed {n}" for n in seeds]
    title = ", ".join([f"{network} on {dataset}", *over])
    axes.set_title(title + (f"\n({shorten(scale, 90, placeholder=' ...')})" if scale else ""), fontsize="medium")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure
