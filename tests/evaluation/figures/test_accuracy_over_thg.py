import dataclasses

import pandas as pd
import pytest
from commands import run
from studies import add

from examples import accuracy_over_thg as example
from worstcase import results_frame
from worstcase.evaluation.figures import accuracy_over_thg
from worstcase.evaluation.record import Record
from worstcase.report.frame import SETTINGS


@pytest.fixture
def sweep(trained, tmp_path):
    """A sweep over two methods, two th_g and two seeds, made from one real record."""
    record = Record.load(trained)
    records = [
        dataclasses.replace(
            record,
            method=method,
            thg=thg,
            seed=seed,
            clean_accuracy=0.9 + 0.02 * seed,
            attacks=[
                dataclasses.replace(found, thg=thg, max_relative_perturbation=0.0) for found in record.attacks
            ],
        )
        for method in ("vanilla", "atrice")
        for thg in (0.01, 0.02)
        for seed in (0, 1)
    ]
    for number, one in enumerate(records):
        add(tmp_path / "sweep" / str(number), one)
    return tmp_path / "sweep"


@pytest.fixture
def results(sweep):
    return results_frame([sweep])


def test_means_and_deviations_over_seeds_are_drawn(results):
    (axes,) = accuracy_over_thg(results).axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {
        f"{method}, {what}"
        for method in ("vanilla", "atrice")
        for what in ("without perturbation", "lowest found (lwc, ensemble)")
    }
    line, _, (bars,) = drawn["vanilla, without perturbation"]
    assert line.get_xdata().tolist() == [0.01, 0.02]
    assert line.get_ydata() == pytest.approx([91.0, 91.0])
    (low, high), _ = (segment[:, 1] for segment in bars.get_segments())
    assert (high - low) / 2 == pytest.approx(2**0.5)  # of 90 and 92
    assert "th_g" in axes.get_xlabel() and "%" in axes.get_ylabel()


def test_each_method_is_in_the_legend_and_the_title_tells_of_unequal_seeds():
    names = ["_mine", "universal_at, " + ", ".join(["clean=0.1234567"] * 5)]
    runs = [
        row(folder=f"{name}{seed}", seed=seed, low=0.6) | {"method": name} for name in names for seed in (0, 1)
    ]
    figure = accuracy_over_thg(pd.DataFrame(runs[:3]))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    shown = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    what = ("without perturbation", "lowest found (lwc)")
    assert shown == [f"{name}, {one}" for name in names for one in what]
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.width
    assert legend.get_window_extent().y1 < figure.axes[0].get_tightbbox().y0
    assert "lenet on mnist5k, 1 to 2 seeds: mean and" in figure.axes[0].get_title()
    assert "mnist5k, 2 seeds:" in accuracy_over_thg(pd.DataFrame(runs)).axes[0].get_title()


def test_a_copied_run_counts_once():
    runs = pd.DataFrame([row(folder="a", seed=0, low=0.6), row(folder="b", seed=1, low=0.2)])
    copied = pd.concat([runs, runs.head(1).assign(folder="copy of a")], ignore_index=True)
    (axes,) = accuracy_over_thg(copied).axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert drawn["vanilla, lowest found (lwc)"][0].get_ydata() == pytest.approx([40.0])


def row(folder, seed, low):
    said = {"network": "lenet", "dataset": "mnist5k", "method": "vanilla", "attack": "lwc", "reference": "test"}
    settings = dict.fromkeys(SETTINGS, "{}")
    found = {"clean_accuracy": 0.9, "attacked_accuracy": low, "certified_accuracy": None, "weights_perturbed": 3}
    return said | settings | found | {"folder": folder, "seed": seed, "thg": 0.03, "full_scale": "layer_max"}


def test_the_band_above_the_certified_accuracy_is_drawn_for_runs_that_have_one(results):
    (axes,) = accuracy_over_thg(results.assign(certified_accuracy=None)).axes
    assert not any("certified" in drawn.get_label() for drawn in axes.collections)
    lowest = results.groupby("folder").attacked_accuracy.transform("min")
    certified = results.assign(certified_accuracy=(0.5 * lowest).where(results.method == "atrice"))
    (axes,) = accuracy_over_thg(certified).axes
    (band,) = [drawn for drawn in axes.collections if "certified" in drawn.get_label()]
    assert band.get_label() == "atrice, between certified and found"
    found = 100 * lowest.iloc[-1]
    heights = {y for x, y in band.get_paths()[0].vertices if x == 0.01}
    assert sorted(heights) == pytest.approx([found / 2, found])


def test_results_that_cannot_share_a_figure_are_refused(results):
    with pytest.raises(ValueError, match="not 2"):
        accuracy_over_thg(pd.concat([results, results.head(1).assign(dataset="mnist", folder="other")]))
    with pytest.raises(ValueError, match="not 2"):
        accuracy_over_thg(results.drop(results.index[results.attack == "lwc"][0]))
    devices = results.reference_settings.where(results.seed == 0, '{"mapping.pair": true}')
    with pytest.raises(ValueError, match="kind of devices and set of attacks with their settings, not 2"):
        accuracy_over_thg(results.assign(reference_settings=devices))
    steps = results.attack_settings.where(results.seed == 0, '{"steps": 50}')
    with pytest.raises(ValueError, match="set of attacks with their settings, not 2"):
        accuracy_over_thg(results.assign(attack_settings=steps))
    trained = results.network_settings.where(results.seed == 0, '{"trainer.max_epochs": 9}')
    with pytest.raises(ValueError, match="the runs of atrice differ in more than th_g and seed"):
        accuracy_over_thg(results.assign(network_settings=trained).iloc[::-1])
    with pytest.raises(ValueError, match="not 0"):
        accuracy_over_thg(results.head(0))


def test_the_example_draws_a_sweep(sweep, tmp_path):
    picture = tmp_path / "picture.png"
    done = run("examples.accuracy_over_thg", tmp_path / "nothing", picture, fails=True)
    assert "no finished runs below" in done.stderr
    run("examples.accuracy_over_thg", sweep, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    by_none = run("examples.accuracy_over_thg", sweep, picture, "no_such_attack", fails=True)
    assert "no finished runs with no_such_attack below" in by_none.stderr


def test_the_example_draws_a_curve_for_each_setting_wherever_a_training_starts(sweep, tmp_path, monkeypatch):
    for folder in sweep.iterdir():
        record = Record.load(folder)
        epochs = 9 if record.method == "atrice" and record.seed == 1 else 3
        trainer = record.config["trainer"] | {"max_epochs": epochs}
        record.config |= {"init_from": f"of_seed{record.seed}.pt", "trainer": trainer}
        record.save(folder)
    drawn = []
    monkeypatch.setattr(example, "accuracy_over_thg", lambda of: drawn.append(of) or accuracy_over_thg(of))
    example.main(str(sweep), str(tmp_path / "picture.png"))
    assert set(drawn[0].method) == {"vanilla", "atrice, max_epochs=3", "atrice, max_epochs=9"}
    record.config["mapping"] = {"pair": True, "device_bits": None, "cut_off": False}
    record.save(folder)
    with pytest.raises(SystemExit, match="error: a figure shows one network, data set, full scale, kind of dev"):
        example.main(str(sweep), str(tmp_path / "picture.png"))
