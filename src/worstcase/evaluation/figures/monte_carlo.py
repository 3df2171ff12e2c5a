"""Accuracies of sampled chips: a histogram, and how far their statistics have converged."""

from __future__ import annotations

import math
from itertools import accumulate
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from worstcase.attacks.distribution import CONFIDENCE, kth_percentile
from worstcase.evaluation.record import AttackRecord, Record
from worstcase.found import at_most

POINTS = 100  # of a convergence curve


def monte_carlo(record: Record, found: AttackRecord) -> Figure:
    """Draw a histogram of the accuracies, and mean, KPP at 1 % and minimum against the number of chips.

    Shaded areas are 95 % intervals. One that reaches the edge has no bound on that side: there are too few chips.

    Args:
        record: of a run.
        found: the record's Monte Carlo attack.

    Raises:
        ValueError: `found` is another attack.
    """
    if not (distribution := found.distribution):
        raise ValueError(f"{found.attack} has no distribution of chips; only monte_carlo has one")
    accuracies = distribution["accuracies"]
    percents = [100 * accuracy for accuracy in accuracies]
    shown = min(percents), max(*percents, 100 * record.clean_accuracy)
    margin = max(0.05 * (shown[1] - shown[0]), 0.05)

    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(percents, bins="auto", color="C0", alpha=0.6)
    left.axvline(100 * record.clean_accuracy, color="black", ls="--", label="without perturbation")
    left.axvline(100 * distribution["mean"], color="C0", label="mean")
    for color, kpp in enumerate(distribution["kpp"][1:3], 1):
        label = f"KPP {kpp['percent']:g} % and its {CONFIDENCE:.0%} interval"
        left.axvline(100 * kpp["accuracy"], color=f"C{color}", label=label)
        left.axvspan(*_interval(kpp), color=f"C{color}", alpha=0.2)
    left.set_xlim(shown[0] - margin, shown[1] + margin)
    left.set_xlabel(f"accuracy on the {record.reference} split (%)")
    left.set_ylabel("chips")
    left.legend(fontsize="small")

    size = len(percents)
    counts = sorted({max(1, round(math.exp(math.log(size) * i / POINTS))) for i in range(POINTS + 1)})
    totals, lowest = list(accumulate(percents)), list(accumulate(percents, min))
    running = [kth_percentile(accuracies[:count], 1) for count in counts]
    right.plot(counts, [totals[count - 1] / count for count in counts], color="C0", label="mean")
    right.plot(
        counts,
        [100 * kpp["accuracy"] for kpp in running],
        color="C2",
        label=f"KPP 1 % and its {CONFIDENCE:.0%} interval",
    )
    right.fill_between(counts, *zip(*map(_interval, running), strict=True), color="C2", alpha=0.2, lw=0)
    right.step(counts, [lowest[count - 1] for count in counts], color="C3", where="post", label="minimum")
    right.set_xscale("log")
    right.set_ylim(shown[0] - margin, shown[1] + margin)
    right.set_xlabel("chips sampled")
    right.set_ylabel(f"accuracy on the {record.reference} split (%)")
    right.legend(fontsize="small")
    right.grid(alpha=0.3)
    unseen = at_most(distribution["unseen"])
    title = (
        f"{record.model} on {record.dataset}, {size:,} chips ({distribution['sampler']}) at th_g = {found.thg:g}. "
        f"With {CONFIDENCE:.0%} confidence, at most {unseen} of chips are below the minimum"
    )
    figure.suptitle(fill(title, 100), fontsize="medium")
    return figure


def _interval(kpp: dict[str, Any]) -> tuple[float, float]:
    """In percent; a missing bound becomes 0 or 100."""
    low, high = kpp["low"], kpp["high"]
    return 0.0 if low is None else 100 * low, 100.0 if high is None else 100 * high
