import dataclasses

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from worstcase.attacks.distribution import describe
from worstcase.evaluation.figures import monte_carlo
from worstcase.evaluation.record import Record


@pytest.fixture
def record(trained):
    """A real record with a made-up distribution: 400 chips of 80.0 to 89.9 %, of which the 301st is the lowest."""
    record = Record.load(trained)
    accuracies = [0.8 + ((i + 100) % 400 // 4) / 1000 for i in range(400)]
    distribution = {"sampler": "vertex", **describe(accuracies), "accuracies": accuracies}
    found = dataclasses.replace(record.attacks[0], distribution=distribution)
    return dataclasses.replace(record, attacks=[found])


def test_the_figure_has_a_histogram_and_convergence_curves(record):
    left, right = monte_carlo(record, record.attacks[0]).axes
    assert sum(bar.get_height() for bar in left.patches if hasattr(bar, "get_height")) >= 400
    assert "%" in left.get_xlabel() and left.get_ylabel() == "chips"
    assert "%" in right.get_ylabel() and right.get_xlabel() == "chips sampled"
    mean, kpp, minimum = right.lines
    for line, last in ((mean, 84.95), (kpp, 80.0), (minimum, 80.0)):
        assert line.get_xdata()[0] == 1 and line.get_xdata()[-1] == 400
        assert line.get_ydata()[0] == pytest.approx(82.5) and line.get_ydata()[-1] == pytest.approx(last)
    assert list(minimum.get_ydata()) == sorted(minimum.get_ydata(), reverse=True)


def test_the_title_lies_within_the_figure(record):
    figure = monte_carlo(dataclasses.replace(record, dataset="tiny_imagenet"), record.attacks[0])
    FigureCanvasAgg(figure).draw()
    title = figure._suptitle.get_window_extent()
    assert title.x0 >= 0 and title.x1 <= figure.bbox.width


def test_other_attacks_have_no_such_figure(trained):
    record = Record.load(trained)
    with pytest.raises(ValueError, match="lwc has no distribution of chips"):
        monte_carlo(record, record.attacks[0])


def test_a_single_chip_can_be_drawn(record):
    found = record.attacks[0]
    alike = describe([0.5]) | {"sampler": "vertex", "accuracies": [0.5]}
    monte_carlo(record, dataclasses.replace(found, distribution=alike))
