"""The picture of a search for a tolerance: accuracy over th_g above, pulses below."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from worstcase.verify.cost import Programming


def answer_over_thg(answer: Mapping[str, Any]) -> Figure:
    """Draw what was proven and found at each th_g, the accuracy to be kept, both ends, and what they cost.

    Args:
        answer: as in ``tolerance.json``, see `worstcase.verify.search.ToleranceSearch.plain`.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[3, 2])
    for points, style, label in (
        (answer["attacked"], "C3v-", "lowest found by an attack"),
        (answer["certified"], "C0^-", "proven"),
    ):
        points = [point for point in points if point["thg"] > 0]
        if points:
            above.plot([p["thg"] for p in points], [100 * p["accuracy"] for p in points], style, ms=5, label=label)
    above.axhline(100 * answer["accuracy"], color="0.3", ls="--", label="to be kept")
    every = [point["thg"] for point in answer["attacked"] + answer["certified"] if point["thg"] > 0]
    thgs = torch.logspace(math.log10(min(every)), math.log10(max(every)), 200, dtype=torch.double)
    of_one_thg, told = Programming(**answer["programming"]).pulses, answer["pulses_per_weight"]
    ends = {end: answer[f"{end}_thg"] for end in ("proven", "broken") if answer[f"{end}_thg"]}
    if ends and all(
        told[end] and math.isclose(told[end], of_one_thg(thg), rel_tol=1e-6) for end, thg in ends.items()
    ):
        below.plot(thgs, of_one_thg(thgs), color="0.3")
    for end, colour, words in (("proven", "C0", "proven to keep it"), ("broken", "C3", "broken")):
        if thg := ends.get(end):
            above.axvline(thg, color=colour, alpha=0.5)
            below.axvline(thg, color=colour, alpha=0.5)
            label = f"{words}: th_g {thg:.3g}"
            if pulses := told[end]:
                below.plot(thg, pulses, "o", color=colour, label=f"{label}, {pulses:.3g} pulses")
            else:
                below.plot([], [], color=colour, label=f"{label}, pulses not counted")
    for by, style in (("array", "--"), ("weight", ":")):
        if pulses := told.get(by):
            below.axhline(pulses, color="C2", ls=style, label=f"th_g of each {by}: {pulses:.3g} pulses")
    above.set_ylabel("accuracy (%)")
    above.set_ylim(0, 102)
    above.set_title(f"how tight must write-verify be to keep {answer['accuracy']:.2%}?", fontsize="medium")
    below.set_ylabel("pulses a weight")
    if any(told.values()):
        below.set_yscale("log")
    else:
        below.set_yticks([])
    below.set_xscale("log")
    below.set_xlabel("write-verify bound th_g (in units of the full scale)")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure
