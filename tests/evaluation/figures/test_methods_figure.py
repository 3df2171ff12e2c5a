import dataclasses

import pytest
from commands import run
from records import CONFIG, attack_record, record

from examples.compare_methods import markdown
from worstcase import results_frame
from worstcase.evaluation.figures.methods import methods
from worstcase.paper.training import method_tables


@pytest.fixture
def sweep(tmp_path):
    """Two methods with two seeds each, attacked by a short ensemble after training and by a longer one later."""
    for method, lowest in (("vanilla", 0.1), ("universal_at", 0.8)):
        for seed in (0, 1):
            trained = record(
                attack_record(attack="flwc", accuracy=lowest + 0.05),
                attack_record(attack="ensemble", accuracy=lowest + 0.02 * seed, parameters={"rounds": 1}),
                method=method,
                seed=seed,
            )
            longer = attack_record(attack="ensemble", accuracy=lowest + 0.01, parameters={"rounds": 9})
            folder = tmp_path / "sweep" / f"{method}{seed}"
            (folder / "evaluation").mkdir(parents=True)
            trained.save(folder)
            evaluated = dataclasses.replace(trained, kind="evaluate", source_run="..", seed=7, attacks=[longer])
            evaluated.save(folder / "evaluation")
    return tmp_path / "sweep"


def test_the_lowest_of_each_attack_counts_for_each_seed(sweep):
    ((title, found),) = method_tables(results_frame([sweep]))
    by_seed = found.sort_values("seed").groupby(["method", "attack"]).attacked_accuracy.agg(list)
    assert by_seed["vanilla", "clean"] == pytest.approx([0.9, 0.9])
    assert by_seed["vanilla", "ensemble"] == pytest.approx([0.1, 0.11])
    assert by_seed["vanilla", "flwc"] == pytest.approx([0.15, 0.15])
    assert set(found.method) == {"vanilla", "universal_at"}
    assert title == "LeNet, MNIST, mnist5k instead of mnist, float, 2 epochs, th_g 0.03"


def test_titles_say_in_what_tables_differ(sweep):
    for number in (2, 3):
        mapping = {"pair": False, "device_bits": number, "cut_off": False}
        (sweep / str(number)).mkdir()
        record(config={**CONFIG, "mapping": mapping}).save(sweep / str(number))
    titles = {title for title, _ in method_tables(results_frame([sweep]))}
    scale = "LeNet, MNIST, mnist5k instead of mnist, float, 2 epochs"
    own = {f"{scale}, devices of its own, th_g 0.03, device_bits={number}" for number in (2, 3)}
    assert titles == {f"{scale}, th_g 0.03"} | own


def test_table_and_figure_show_the_same_numbers(sweep):
    ((_, found),) = method_tables(results_frame([sweep]))
    assert markdown(found).splitlines()[2:] == [
        "| `universal_at` | 2 | 90.00 ± 0.00 | 85.00 ± 0.00 | 80.50 ± 0.71 |",
        "| `vanilla` | 2 | 90.00 ± 0.00 | 15.00 ± 0.00 | 10.50 ± 0.71 |",
    ]
    (axes,) = methods(found, "LeNet").axes
    drawn = {c.get_label(): c[0].get_xdata().tolist() for c in axes.containers}
    assert drawn["lowest found (ensemble)"] == pytest.approx([10.5, 80.5])
    assert drawn["as programmed"] == pytest.approx([90, 90])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["vanilla", "universal_at"]


def test_a_table_of_unequal_seeds_says_so(sweep):
    ((_, found),) = method_tables(results_frame([sweep]))
    fewer = found[(found.method == "vanilla") | (found.seed == 0) | (found.attack == "clean")]
    assert [line.split(" | ")[1] for line in markdown(fewer).splitlines()[2:]] == ["1 to 2", "2"]


def test_long_names_of_methods_are_shown_in_full(sweep):
    ((_, found),) = method_tables(results_frame([sweep]))
    names = {"vanilla": "_a_$name$_" * 8, "universal_at": "universal_at, " + ", ".join(["clean=0.1234567"] * 5)}
    figure = methods(found.assign(method=found.method.map(names)), "LeNet, " * 10)
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    shown = [label.get_text().replace("\n", "").replace(" ", "") for label in labels]
    assert shown == [name.replace(" ", "") for name in names.values()]
    for text in (*labels, figure._suptitle):
        assert text.get_window_extent().x0 >= 0 and text.get_window_extent().x1 <= figure.bbox.width


def test_the_example_prints_a_table_and_draws_a_figure(sweep, tmp_path):
    example = ["examples.compare_methods", sweep, tmp_path / "methods.png"]
    assert run(*example).stdout.startswith("| method | seeds | clean | flwc | ensemble |")
    assert (tmp_path / "methods.png").stat().st_size > 10_000
    (sweep / "other").mkdir()
    record(samples=500).save(sweep / "other")
    assert (
        "compare one network, scale and th_g at a time, not: lenet on mnist5k" in run(*example, fails=True).stderr
    )
