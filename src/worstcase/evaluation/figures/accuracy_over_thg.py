"""Clean and lowest found accuracy against th_g (the axes of the paper's Fig. 8), from records alone."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from textwrap import shorten

from matplotlib.figure import Figure

from worstcase.evaluation.record import Record


def accuracy_over_thg(records: Iterable[Record], scale: str = "") -> Figure:
    """One colour a method: mean over seeds, a bar of one standard deviation, and each run as a dot.

    A record may hold attacks at several th_g, as an evaluation over a list has them. Where a method's records have
    a certified accuracy, the band from there to the lowest found is filled: in it lies the worst case.

    Args:
        records: of one network, data set, full scale and set of attacks; methods, th_g and seeds may differ.
        scale: what else they are of, said in the title.

    Raises:
        ValueError: there are none, or they are of several networks, data sets, full scales or attacks.
    """
    records = list(records)
    settings = {
        (
            r.model,
            r.dataset,
            r.full_scale,
            r.reference,
            ", ".join(dict.fromkeys(found.attack for found in r.attacks)),
        )
        for r in records
    }
    if len(settings) != 1:
        raise ValueError(f"one network, data set, full scale and set of attacks is drawn, not {len(settings)}")
    ((model, dataset, full_scale, reference, attacks),) = settings

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for color, method in enumerate(sorted({_method(r) for r in records})):
        own = [r for r in records if _method(r) == method]
        for label, style, value in (
            ("without perturbation", "--", lambda r, thg: r.clean_accuracy),
            (f"lowest found ({attacks})", "-", _lowest_found),
        ):
            by_thg = _by_thg(own, value)
            means = [statistics.mean(values) for values in by_thg.values()]
            deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in by_thg.values()]
            axes.errorbar(
                list(by_thg), means, deviations, color=f"C{color}", ls=style, capsize=3, label=f"{method}, {label}"
            )
            for thg, values in by_thg.items():
                axes.plot([thg] * len(values), values, ".", color=f"C{color}", alpha=0.5)
        certified = [r for r in own if r.certified_accuracy is not None]
        if certified:
            low, high = (
                {thg: statistics.mean(values) for thg, values in _by_thg(certified, value).items()}
                for value in (lambda r, thg: r.certified_accuracy, _lowest_found)
            )
            label = f"{method}, between certified and found"
            axes.fill_between(
                list(low), list(low.values()), list(high.values()), color=f"C{color}", alpha=0.15, label=label
            )
    unit = "each layer's largest weight" if full_scale == "layer_max" else "1"
    seeds = len({r.seed for r in records})
    axes.set_xlabel(f"write-verify bound th_g (in units of {unit})")
    axes.set_ylabel(f"accuracy on the {reference} split (%)")
    over = f"{seeds} seeds: mean and standard deviation" if seeds > 1 else f"seed {records[0].seed}"
    title = f"{model} on {dataset}, {over}" + (f"\n({shorten(scale, 90, placeholder=' ...')})" if scale else "")
    axes.set_title(title, fontsize="medium")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _by_thg(records: Iterable[Record], value: Callable[[Record, float], float]) -> dict[float, list[float]]:
    """Percent of each record, by th_g in increasing order."""
    found = defaultdict(list)
    for r in records:
        for thg in {attack.thg for attack in r.attacks}:
            found[thg].append(100 * value(r, thg))
    return dict(sorted(found.items()))


def _method(record: Record) -> str:
    return record.method or "given weights"


def _lowest_found(record: Record, thg: float) -> float:
    return min(found.accuracy for found in record.attacks if found.thg == thg)
