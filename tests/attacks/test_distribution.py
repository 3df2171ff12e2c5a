"""Order statistics by hand, and the coverage of intervals by simulation."""

import random

import pytest

from worstcase.attacks.distribution import describe, kth_percentile


def test_summary_by_hand():
    summary = describe([0.9, 0.7, 0.8])
    assert summary["mean"] == pytest.approx(0.8) and summary["deviation"] == pytest.approx(0.1)
    assert summary["minimum"] == 0.7
    assert (1 - summary["unseen"]) ** 3 == pytest.approx(0.05)  # the chance to miss so large a tail three times
    assert describe([0.5])["deviation"] is None
    assert [kpp["percent"] for kpp in summary["kpp"]] == [50, 10, 1, 0.1]


@pytest.mark.parametrize(
    ("samples", "percent", "estimate", "low", "high"),
    [
        (10, 50, 5, 2, 9),  # the interval of the median of ten in every textbook: 97.9 %
        (100, 50, 50, 40, 61),
        (5, 50, 3, None, None),  # all five above the median: 3.1 %, more than 2.5
        (6, 50, 3, 1, 6),
        (1000, 1, 10, 4, 18),
        (1000, 0.1, 1, None, 4),
        (367, 1, 4, None, 9),  # 0.99^367 = 0.02502
        (368, 1, 4, 1, 9),
        (3687, 0.1, 4, None, 9),
        (3688, 0.1, 4, 1, 9),  # 0.999^3688 = 0.02497
    ],
)
def test_percentiles_are_order_statistics(samples, percent, estimate, low, high):
    ranks = list(range(1, samples + 1))
    random.Random(0).shuffle(ranks)
    assert kth_percentile(ranks, percent) == {
        "percent": percent,
        "accuracy": estimate,
        "low": low,
        "high": high,
    }


@pytest.mark.parametrize(("samples", "percent"), [(50, 50), (60, 10), (500, 1)])
@pytest.mark.parametrize("values", [None, 4])
def test_intervals_hold_the_quantile_as_often_as_they_say(samples, percent, values):
    """Of a continuous distribution, and of one with a few values, as accuracies over few images have."""
    generator = random.Random(0)
    quantile = percent / 100  # of the uniform distribution
    if values:
        quantile = int(quantile * values) / values
    held, trials = 0, 2000
    for _ in range(trials):
        sample = [generator.random() for _ in range(samples)]
        if values:
            sample = [int(u * values) / values for u in sample]
        found = kth_percentile(sample, percent)
        held += (found["low"] is None or found["low"] <= quantile) and (
            found["high"] is None or quantile <= found["high"]
        )
    assert held / trials > 0.94


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_percent_out_of_range(percent):
    with pytest.raises(ValueError, match="above 0 and below 100"):
        kth_percentile([0.5], percent)
