"""Conclusions from a sample of chips about all chips, for any distribution of their accuracies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import binom

CONFIDENCE = 0.95
PERCENTS = (50.0, 10.0, 1.0, 0.1)


def describe(accuracies: Sequence[float]) -> dict[str, Any]:
    """Summarise the accuracies of independently sampled chips.

    Args:
        accuracies: fractions 0..1, one or more.

    Returns:
        Plain types: ``mean``, ``deviation`` (None of one chip), ``minimum``, ``kpp`` (`kth_percentile` at 50, 10,
        1 and 0.1 %) and ``unseen``: with 95 % confidence at most this share of all chips is worse than the
        minimum. That bound, 1 - 0.05^(1/N), is all that N samples say of the worst case.

    Example:
        >>> summary = describe([0.5] * 300)
        >>> summary["minimum"], round(summary["unseen"], 4)
        (0.5, 0.0099)
    """
    return {
        "mean": statistics.fmean(accuracies),
        "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "minimum": min(accuracies),
        "kpp": [kth_percentile(accuracies, percent) for percent in PERCENTS],
        "unseen": 1 - (1 - CONFIDENCE) ** (1 / len(accuracies)),
    }


def kth_percentile(accuracies: Sequence[float], percent: float) -> dict[str, Any]:
    """K-th percentile performance (KPP): the accuracy that `percent` % of all chips do not exceed.

    The estimate is the sample's own quantile. The interval holds it with 95 % confidence for any distribution:
    its ends are order statistics, since the number of sampled chips below a quantile is binomial.

    Args:
        accuracies: of independently sampled chips.
        percent: above 0 and below 100.

    Returns:
        ``percent``, ``accuracy``, ``low``, ``high``; an end is None where so few samples cannot bound it. A lower
        end takes 3.69 / p samples for a small share p: 368 for 1 %, 3,688 for 0.1 %.

    Example:
        >>> kth_percentile([i / 100 for i in range(101)], 50)
        {'percent': 50, 'accuracy': 0.5, 'low': 0.4, 'high': 0.6}
    """
    if not 0 < percent < 100:
        raise ValueError(f"percent={percent}: must be above 0 and below 100")
    ordered = sorted(accuracies)
    size, share, tail = len(ordered), percent / 100, (1 - CONFIDENCE) / 2
    low, high = int(binom.ppf(tail, size, share)), int(binom.ppf(1 - tail, size, share)) + 1
    return {
        "percent": percent,
        "accuracy": ordered[max(1, math.ceil(size * share - 1e-9)) - 1],
        "low": ordered[low - 1] if low >= 1 else None,
        "high": ordered[high - 1] if high <= size else None,
    }
