import dataclasses
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment
from test_results import attack_record, record

from worstcase.figures.methods import accuracies_by_method, markdown, methods


@pytest.fixture
def records():
    """Two methods of two seeds, trained with a short ensemble at the end, and evaluated again."""
    made = []
    for method, lowest in (("vanilla", 0.1), ("universal_at", 0.8)):
        for seed in (0, 1):
            trained = record(
                attack_record(attack="flwc", accuracy=lowest + 0.05),
                attack_record(attack="ensemble", accuracy=lowest + 0.02 * seed),
                method=method,
                seed=seed,
            )
            evaluated = dataclasses.replace(
                trained, kind="evaluate", attacks=[attack_record(attack="ensemble", accuracy=lowest)]
            )
            made += [trained, evaluated]
    return made


def test_the_lowest_of_each_attack_counts_for_each_seed(records):
    table = accuracies_by_method(records)
    assert table["vanilla"]["clean"] == [0.9, 0.9] and table["vanilla"]["ensemble"] == [0.1, 0.1]
    assert table["vanilla"]["flwc"] == pytest.approx([0.15, 0.15])
    assert set(table) == {"vanilla", "universal_at"}


def test_table_and_figure_say_the_same(records):
    table = accuracies_by_method(records)
    assert markdown(table).splitlines()[2:] == [
        "| `universal_at` | 2 | 90.00 ± 0.00 | 85.00 ± 0.00 | 80.00 ± 0.00 |",
        "| `vanilla` | 2 | 90.00 ± 0.00 | 15.00 ± 0.00 | 10.00 ± 0.00 |",
    ]
    (axes,) = methods(table, "LeNet").axes
    drawn = {c.get_label(): c[0].get_xdata().tolist() for c in axes.containers}
    assert drawn["lowest found (ensemble)"] == pytest.approx([10, 80])
    assert drawn["as programmed"] == pytest.approx([90, 90])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vanilla", "universal_at"]


def test_what_cannot_be_compared_is_refused(records):
    with pytest.raises(ValueError, match="one network"):
        accuracies_by_method([*records, dataclasses.replace(records[0], dataset="other")])
    with pytest.raises(ValueError, match="not 0"):
        accuracies_by_method([])


def test_example(records, tmp_path):
    for i, made in enumerate(records):
        folder = tmp_path / str(i)
        folder.mkdir()
        made.save(folder)
    script = [sys.executable, "examples/compare_methods.py", str(tmp_path), str(tmp_path / "methods.png")]
    done = subprocess.run(script, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| method | seeds | clean | flwc | ensemble |")
    assert (tmp_path / "methods.png").stat().st_size > 10_000
