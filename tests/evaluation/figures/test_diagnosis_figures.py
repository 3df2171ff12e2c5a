import dataclasses

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from safetensors.torch import load_file

from worstcase import load_run
from worstcase.evaluation.diagnosis import diagnose
from worstcase.evaluation.evaluation import PERTURBATION
from worstcase.evaluation.figures import diagnosis, diagnosis_figures


@pytest.fixture(scope="module")
def record(trained):
    """The record of a real run, with the full diagnosis of the chip that its attack found."""
    run = load_run(trained)
    run.datamodule.prepare_data()
    worst = load_file(trained / PERTURBATION)
    told = diagnose(run.crossbar, run.datamodule.test_dataloader(), worst, full=True, budget=6, progress=False)
    return dataclasses.replace(run.record, diagnosis=told)


def test_titles_lie_within_their_figures(record):
    named = dataclasses.replace(record, model="resnet18", method="universal_at_deep", dataset="tiny_imagenet")
    for figure in diagnosis_figures(named).values():
        FigureCanvasAgg(figure).draw()
        title = figure._suptitle.get_window_extent()
        assert title.x0 >= 0 and title.x1 <= figure.bbox.width


def test_all_figures_that_a_record_has_data_for_are_drawn(record, tmp_path):
    figures = diagnosis_figures(record)
    assert set(figures) == {"confusion", "confidence", "perturbation", "layers", "selective_write_verify"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel()
    short = {**record.diagnosis, "selective_write_verify": None, "budget": None}
    short["layers"] = [
        {key: layer[key] for key in ("array", "weights", "mean", "unmoved", "at_bound")}
        for layer in short["layers"]
    ]
    short["confusion"] = {**short["confusion"], "matrix": None}
    drawn = diagnosis_figures(dataclasses.replace(record, diagnosis=short))
    assert set(drawn) == {"confidence", "perturbation", "layers"}
    assert diagnosis_figures(dataclasses.replace(record, diagnosis=None)) == {}


def test_the_figures_show_the_records_numbers(record):
    told = record.diagnosis
    axes = diagnosis.confusion(record).axes[0]
    texts = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert texts == {
        (i, j): str(n) for i, row in enumerate(told["confusion"]["matrix"]) for j, n in enumerate(row)
    }
    (line, *_) = diagnosis.selective_write_verify(record).axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([0.1, 1, 3, 10, 30])
    assert list(line.get_ydata()) == [
        pytest.approx(100 * point["all_others_move"]) for point in told["selective_write_verify"]
    ]
    moved, damage = diagnosis.layers(record).axes
    assert moved.get_yticklabels()[0].get_text() == "conv1 (54)"
    assert [round(bar.get_width(), 6) for bar in damage.containers[1]] == [
        round(100 * layer["lowest_alone"], 6) for layer in told["layers"]
    ]
    (stairs,) = diagnosis.perturbation(record).axes[0].patches
    assert sum(stairs.get_data().values) == pytest.approx(100)


def test_the_search_for_c_shows_the_last_entry_of_each_c(record):
    history = [
        {"passes": 1, "accuracy": 0.9},
        {"passes": 4, "accuracy": 0.5, "c": 10.0, "magnitude": 2.0},
        {"passes": 7, "accuracy": 0.2, "c": 10.0, "magnitude": 4.0},
        {"passes": 10, "accuracy": 0.7, "c": 0.1, "magnitude": 0.5},
    ]
    searched = dataclasses.replace(record.attacks[0], history=history)
    figure = diagnosis_figures(dataclasses.replace(record, attacks=[searched]))[
        f"search_for_c-thg{searched.thg:g}"
    ]
    assert isinstance(figure, Figure)
    error, magnitude = figure.axes
    assert list(error.lines[0].get_xdata()) == [0.1, 10]
    assert list(error.lines[0].get_ydata()) == pytest.approx([30, 80])
    assert list(magnitude.lines[0].get_ydata()) == [0.5, 4]
    with pytest.raises(ValueError, match="needs two or more"):
        diagnosis.search_for_c(record, dataclasses.replace(searched, history=history[:2]))
