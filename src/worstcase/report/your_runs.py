"""Every finished run, whether or not the paper has its network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Any

from matplotlib.figure import Figure

from worstcase.evaluation.record import visible
from worstcase.report.rows import CLEAN, Finding, Result, Run, cut, results
from worstcase.report.section import Section, section

NAMED = 19
"""Methods with a colour and shape of their own; the others share one."""


def your_runs(runs: Sequence[Run]) -> Section | None:
    found = sorted(
        (r for r in results(runs) if r.attack != CLEAN),
        key=lambda r: (r.run.network_name, r.method, r.thg, r.run.seed, r.attack),
    )
    caption = (
        "Every finished run, with what each of its attacks found. In the picture a dot is one attack of one run: "
        "on the diagonal the attack changed nothing, and the farther below it, the more the worst chip loses."
    )
    return section("runs", "Your runs", caption, [_row(r) for r in found], found, {"": _picture(found)})


def _row(result: Result) -> Finding:
    run = result.run
    labels = {
        "network": run.network_name,
        "method": result.method,
        "th_g": f"{result.thg:g}",
        "seed": str(run.seed) if run.trained else "-",
        "attack": result.attack,
    }
    clean, flags = 100 * run.record.clean_accuracy, len(run.record.flags)
    return Finding(labels, [result.accuracy], scale=", ".join(run.differences()), clean=clean, flags=flags)


def _picture(found: Sequence[Result]) -> Figure:
    """Clean accuracy against lowest found, a colour a method."""
    methods = [method for method, _ in Counter(r.method for r in found).most_common()]
    own, shared = sorted(methods[:NAMED]), methods[NAMED:]
    groups = [[r for r in found if r.method == method] for method in own]
    names = [cut(visible(method), 40) for method in own]
    if shared:
        groups.append([r for r in found if r.method in shared])
        names.append(f"{len(shared)} other methods")
    columns = 4 if max(map(len, names)) <= 16 else 2
    figure = Figure(figsize=(7.0, 4.8 + 0.2 * ceil(len(names) / columns)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], "--", color="gray", lw=1)
    dots = []
    for number, of in enumerate(groups):
        clean, lowest = [100 * r.run.record.clean_accuracy for r in of], [r.accuracy for r in of]
        color, marker = (f"C{number % 10}", "o^"[number // 10]) if number < len(own) else ("black", "D")
        style: dict[str, Any] = {"ms": 7, "mec": "white", "mew": 0.5, "alpha": 0.75, "clip_on": False}
        dots += axes.plot(clean, lowest, marker, color=color, **style)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("accuracy as programmed (%)")
    axes.set_ylabel("lowest found (%)")
    axes.grid(alpha=0.3)
    legend = figure.legend(dots, [""] * len(dots), loc="outside lower center", ncols=columns, fontsize="small")
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure
