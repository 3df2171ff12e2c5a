"""Which numbers share a row in the sections of the paper, and under which label."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil

import pytest
from studies import add, labels, record_of, rows_of, sections

from worstcase import results_frame
from worstcase.evaluation.record import Record
from worstcase.paper import numbers
from worstcase.paper.beside import beside_paper


def lines(folder, name):
    return list(csv.DictReader((folder / f"{name}.csv").open()))


def test_the_papers_tables_have_all_networks_and_agree():
    for table in (numbers.TABLE1, numbers.TABLE1_MINUTES, numbers.TABLE2):
        assert table.keys() == numbers.NETWORKS.keys() == numbers.BITS.keys()
    assert numbers.TABLE4[numbers.CONVNET]["flwc"] == numbers.TABLE6[0.03]["vanilla"]
    assert json.dumps(sorted(numbers.TABLE6)) == "[0.0, 0.01, 0.02, 0.03, 0.04]"


def test_a_row_has_mean_deviation_each_seed_and_the_papers_value(made, report_folder):
    (row,) = [row for row in lines(report_folder, "table5") if (row["method"], row["attack"]) == ("va", "lwc")]
    assert row["network"] == "LeNet, MNIST"
    assert float(row["mean"]) == pytest.approx(55) and float(row["deviation"]) == pytest.approx(50**0.5)
    assert [float(value) for value in row["each seed"].split()] == pytest.approx([50, 60])
    assert (row["paper"], row["paper deviation"], row["seeds"]) == ("81.58", "0.8", "2")
    assert row["scale"] == "mnist5k instead of mnist, float, 3 epochs"


def test_the_papers_value_stands_only_beside_its_own_attack(made, report_folder):
    for row in lines(report_folder, "table5"):
        assert (row["paper"] != "") == (row["attack"] == "lwc")
    assert {row["what"]: row["paper"] for row in lines(report_folder, "table1") if row["unit"] == "%"} == {
        "as programmed": "99.12",
        "lowest found (lwc)": "7.35",
        "lowest found (pgd)": "13.44",
        "lowest found (flwc)": "",
    }


def test_the_worst_chips_sections_come_from_its_own_record(made, explained):
    answers = made["table3"].rows[made["table3"].rows.quantity.str.contains("answers")]
    assert answers["class"].is_unique and answers["mean"].sum() == explained.samples
    ends = made["fig5"].rows.iloc[0]
    assert ends.paper == numbers.FIG5_AT_AN_END == 0.65 and 0 < ends["mean"] <= 1
    assert made["fig4"].rows.query("chip == 'worst'").paper.tolist() == [0.47, 0.90]
    assert len(made["fig3"].rows) >= 4


def test_a_network_trained_without_th_g_counts_at_every_th_g_and_others_at_their_own(made, study, tmp_path):
    rows = made["fig8a"].rows
    found = set(zip(rows.method, rows.th_g, strict=True))
    assert found == {(method, thg) for method in ("vanilla", "va", "atrice") for thg in ("0.01", "0.03")}
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    config = {**record.config, "thg": 0.02, "method": {"_target_": "atrice"}}
    add(tmp_path / "attacked_elsewhere", record, method="atrice", config=config)
    assert not results_frame([tmp_path]).as_trained.any()


@pytest.mark.parametrize(
    ("method", "seconds", "at_larger"), [("vanilla", 9.0, 0.2), ("vanilla", 9.5, 0.3), ("atrice", 9.0, 0.3)]
)
def test_a_chip_found_at_a_smaller_th_g_counts_at_a_larger_one_of_the_same_network(
    method, seconds, at_larger, study, tmp_path
):
    """Copies of one training took the same seconds; another commit may have attacked them."""
    for thg, accuracy, took, commit in ((0.01, 0.2, 9.0, "a"), (0.03, 0.3, seconds, "b")):
        one = record_of(Record.load(study / "va" / "thg0.03-seed0"), method=method, seed=0, thgs=[thg])
        lwc = dataclasses.replace(one.attacks[0], accuracy=accuracy)
        add(tmp_path / f"{thg}", one, attacks=[lwc], train_seconds=took, git_commit=40 * commit)
    rows = sections(study, tmp_path)["fig8a"].rows.query(f"method == '{method}' and attack == 'lwc'")
    assert [each[0] for each in rows["each seed"]] == [0.2, at_larger]


def test_runs_with_different_settings_are_not_pooled_as_seeds(study, trained, tmp_path):
    record = Record.load(study / "va" / "thg0.03-seed1")
    other = {**record.config, "model": {**record.config["model"], "optimizer": {"lr": 1.0}}}
    add(tmp_path / "other", record, config=other)
    rows = rows_of(sections(study, tmp_path)["table5"], **labels("va", "lwc"))
    assert sorted(len(row["each seed"]) for row in rows) == [1, 2]
    assert sorted(row.scale.split(", ")[-1] for row in rows) == ["lr=0.002", "lr=1.0"]


def test_evaluations_with_another_batch_size_have_rows_of_their_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    for seed in (0, 1):
        trained = tmp_path / "study" / "va" / f"thg0.03-seed{seed}"
        record = Record.load(trained)
        other = {**record.config, "dataset": {**record.config["dataset"], "batch_size": 32 + seed}}
        found = [dataclasses.replace(record.attacks[0], attack="ensemble", thg=0.03)]
        again = {"kind": "evaluate", "source_run": "../..", "attacks": found}
        add(trained / "evaluations" / "one", record, **again, config=other)
    rows = rows_of(sections(tmp_path / "study")["table5"], **labels("va", "ensemble"))
    assert [row.scale.split(", ")[-1] for row in rows] == ["batch_size=32", "batch_size=33"]


def test_networks_trained_with_another_full_scale_have_rows_of_their_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed1"
    record = Record.load(trained)
    dataclasses.replace(record, config={**record.config, "full_scale": "unit"}).save(trained)
    rows = rows_of(sections(tmp_path / "study")["table5"], **labels("va", "lwc"))
    assert [row.scale.split(", ")[-1] for row in rows] == ["full_scale=layer_max", "full_scale=unit"]


def test_a_network_selected_by_attacked_accuracy_counts_only_at_its_own_th_g(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    method = {**record.config["method"], "monitor": "val/attacked_accuracy"}
    add(tmp_path / "regular", record)
    add(tmp_path / "selected", record, config={**record.config, "thg": 0.03, "method": method})
    for name, thgs in (("regular", {0.01, 0.03}), ("selected", {0.03})):
        results = results_frame([tmp_path / name])
        assert set(results.thg) == {0.01, 0.03} and set(results.thg[results.as_trained]) == thgs


def test_a_training_outside_the_folders_is_found_and_unknown_once_it_is_gone(study, tmp_path):
    trained, out = tmp_path / "trained", tmp_path / "evaluations" / "one"
    shutil.copytree(study / "atrice" / "thg0.03-seed1", trained)
    add(out, Record.load(trained), kind="evaluate", source_run="../../trained")
    found = results_frame([tmp_path / "evaluations"])
    assert set(found.training) == {str(trained)} and set(found.seed) == {1} and found.as_trained.all()
    shutil.rmtree(trained)
    found = results_frame([tmp_path / "evaluations"])
    assert found.training.isna().all() and found.seed.isna().all() and not found.as_trained.any()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"exclude": ["conv1"]}, "some layers exact"),
        ({"model": {"variant": "lecun98"}}, "variant lecun98"),
    ],
)
def test_changes_to_the_papers_networks_are_named_in_scale(config, scale, explained, tmp_path):
    add(tmp_path / "other", explained, source_run=None, config={**explained.config, **config}, samples=500)
    ((of, said),) = set(
        zip(*(beside_paper(results_frame([tmp_path]))[name] for name in ("of", "scale")), strict=True)
    )
    assert of == numbers.LENET and {scale, "500 test images"} <= set(said.split(", "))


def test_table_i_keeps_a_network_without_sampled_chips(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    sampled = dataclasses.replace(record.attacks[0], attack="monte_carlo", thg=0.03, parameters={"instances": 200})
    add(tmp_path / "sampled", record, attacks=[sampled], config={**record.config, "trainer": {"max_epochs": 9}})
    add(tmp_path / "convnet", record, model="convnet", dataset="cifar10", samples=10_000)
    rows = sections(tmp_path, study)["table1"].rows
    shown = set(zip(rows.network, rows.what, strict=True))
    assert ("LeNet, MNIST", "lowest found (monte_carlo)") in shown
    assert ("LeNet, MNIST", "lowest found (flwc)") not in shown  # it attacked networks that were not sampled
    assert ("ConvNet, CIFAR-10", "lowest found (flwc)") in shown


def test_fig7_is_made_from_evaluations_with_one_number_of_steps_each(study, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(study / "vanilla" / "thg0.03-seed0", trained)
    record = Record.load(trained)
    dataclasses.replace(record, attacks=record.attacks[:1]).save(trained)
    for steps in (1, 2, 5):
        found = [dataclasses.replace(record.attacks[-1], seconds=steps, parameters={"steps": steps})]
        add(trained / "evaluations" / str(steps), record, kind="evaluate", source_run="../..", attacks=found)
    (axes,) = sections(tmp_path)["fig7"].figures["fig7"].axes
    assert {text.get_text() for text in axes.texts} == {"1", "2", "5"}
    on_gpu = [dataclasses.replace(record.attacks[-1], seconds=0.5, parameters={"steps": 5})]
    options = {"kind": "evaluate", "source_run": "../..", "attacks": on_gpu, "device": "H100"}
    add(trained / "evaluations" / "gpu", record, **options)
    times = sections(tmp_path)["fig7"].rows.query("unit == 's'").set_index("quantity")["mean"]
    assert times.filter(like=",").to_dict() == {"time, H100": 0.5, f"time, {record.device}": 5}


def test_two_trainings_of_one_seed_count_as_one(study, tmp_path):
    """Table I and Fig. 8 both train the regular networks."""
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    lower = [dataclasses.replace(record.attacks[0], thg=0.03, accuracy=0.2)]
    add(tmp_path / "again", record, attacks=lower, command="python -m src.train experiment=table1")
    made = sections(study, tmp_path)
    (row,) = rows_of(made["table5"], **labels("vanilla", "lwc"))
    assert row["each seed"] == pytest.approx([0.2, 0.6])
    assert "methods-1" in made["methods"].figures


def test_the_seed_of_an_evaluation_does_not_count_as_a_training_seed(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed0"
    record = Record.load(trained)
    add(trained / "evaluations" / "lwc", record, kind="evaluate", source_run="../..", seed=7)
    made = sections(tmp_path / "study")
    (row,) = rows_of(made["table5"], **labels("va", "lwc"))
    assert row["each seed"] == pytest.approx([0.5, 0.6])
    assert made["table5"].seeds == "2 seeds (0, 1)"


def test_an_attack_with_other_settings_has_a_row_of_its_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed0"
    record = Record.load(trained)
    stronger = dataclasses.replace(record.attacks[1], accuracy=0.3, parameters={"steps": 10, "epochs": 50})
    add(trained / "evaluations" / "lwc", record, kind="evaluate", source_run="../..", attacks=[stronger])
    made = sections(tmp_path / "study")
    rows = rows_of(made["table5"], **labels("va", "lwc"))
    found = sorted((row["each seed"], "epochs=50" in row.scale) for row in rows)
    assert found == [([0.3], True), ([0.5, 0.6], False)]


def test_th_g_with_a_rounding_error_belongs_to_the_same_row(study, tmp_path):
    thg = 3 * 0.1 / 10
    assert thg != 0.03
    add(
        tmp_path / "ranged",
        record_of(Record.load(study / "va" / "thg0.03-seed0"), method="trice", seed=0, thgs=[thg]),
    )
    assert rows_of(sections(study, tmp_path)["methods"], **labels("trice", "lwc"))


def test_a_method_with_several_settings_has_a_curve_for_each(study, tmp_path):
    for thg in (0.01, 0.03):
        record = Record.load(study / "atrice" / f"thg{thg}-seed0")
        other = {**record.config, "method": {**record.config["method"], "alpha": 0.3}}
        add(tmp_path / f"other{thg}", record, config=other)
    made = sections(study, tmp_path)
    (legend,) = made["fig8a"].figures["fig8a-lwc"].legends
    named = {text.get_text().rpartition(", ")[0] for text in legend.get_texts()}
    assert named == {"vanilla", "va", "atrice", "atrice, alpha=0.3"}


def test_the_first_curve_has_the_plain_name_after_unrelated_runs(study, tmp_path):
    """The README's first command leaves such a run: one point at another scale."""
    record = Record.load(study / "atrice" / "thg0.03-seed0")
    add(tmp_path / "before", record, config={**record.config, "trainer": {"max_epochs": 40}})
    os.utime(tmp_path / "before" / "results.json", (0, 0))
    assert list(sections(tmp_path, study)["fig8a"].figures) == ["fig8a-flwc", "fig8a-lwc"]


def test_a_network_that_is_not_in_the_paper_says_so_in_scale(study, tmp_path):
    add(tmp_path / "own", Record.load(study / "va" / "thg0.03-seed0"), model="own")
    made = sections(study, tmp_path)
    rows = made["methods"].rows
    (scale,) = set(rows.scale[rows.network.str.startswith("own")])
    assert scale == "not in the paper"


def test_fewer_sampled_chips_than_in_the_paper_are_named_in_scale(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    sampled = dataclasses.replace(record.attacks[0], attack="monte_carlo", thg=0.03, parameters={"instances": 200})
    add(tmp_path / "sampled", record, attacks=[sampled])
    rows = sections(tmp_path)["table1"].rows
    scales = dict(zip(rows.what, rows.scale, strict=True))
    assert scales["lowest found (monte_carlo)"] == scales["as programmed"] + ", 200 chips"


def test_sampled_chips_have_the_scale_of_their_own_attack(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    found = {"sampler": "vertex", "mean": 0.8, "deviation": 0.0, "minimum": 0.8, "kpp": [], "unseen": 0.1}
    sampled = [
        dataclasses.replace(
            record.attacks[0],
            attack="monte_carlo",
            parameters={"instances": number},
            distribution=found | {"instances": number, "first": 0, "infeasible": 0, "accuracies": [0.8]},
        )
        for number in (100, 200)
    ]
    add(tmp_path / "sampled", record, attacks=sampled)
    rows = sections(tmp_path)["monte_carlo"].rows
    ends = {(chips, scale.split(", ")[-1]) for chips, scale in zip(rows.chips, rows.scale, strict=True)}
    assert ends == {("100 (vertex)", "100 chips"), ("200 (vertex)", "200 chips")}


def test_torchvision_networks_given_to_an_evaluation_belong_to_the_paper(explained, tmp_path):
    for net, network in (
        ("torchvision.models:resnet18", numbers.IMAGENET),
        ("torchvision.models:vgg16", numbers.VGG16),
    ):
        add(tmp_path / net, explained, source_run=None, model=net, dataset="imagenet", method=None)
        assert set(beside_paper(results_frame([tmp_path / net])).of) == {network}


def test_pulses_that_were_shared_out_have_a_section_of_their_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    for seed in (0, 1):
        trained = tmp_path / "study" / "vanilla" / f"thg0.03-seed{seed}"
        record = Record.load(trained)
        for share, lost in (("weight", 0.1), ("same", 0.3)):
            for pulses in (3.0, 10.0):
                config = {**record.config, "pulses": pulses, "share": share, "programming": {"sigma": 0.1}}
                accuracy = 0.8 - lost / pulses - seed / 100
                found = [dataclasses.replace(record.attacks[0], attack="ensemble", thg=0.03, accuracy=accuracy)]
                again = {"kind": "evaluate", "source_run": "../..", "attacks": found, "config": config}
                add(trained / "evaluations" / f"{share}{pulses}", record, **again)
    made = sections(tmp_path / "study")
    rows = made["swim"].rows
    assert rows["shared out"].tolist() == ["the same th_g everywhere", "ours, a th_g for each weight"] * 2
    assert rows.pulses.tolist() == ["3", "3", "10", "10"] and (rows.seeds == 2).all()
    assert rows["mean"].tolist() == pytest.approx([0.8 - lost / p - 0.005 for p in (3, 10) for lost in (0.3, 0.1)])
    (axes,) = made["swim"].figures["swim"].axes
    assert axes.get_xlabel().startswith("programming pulses a weight") and len(axes.containers) == 2
    frame = results_frame([tmp_path / "study"])
    assert not frame[frame.reference_settings.str.contains('"share"')].as_trained.any()
    assert not any("share" in scale for scale in made["fig8a"].rows.scale)


def test_a_line_over_pulses_is_of_one_attack_and_one_mapping(study, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(study / "vanilla" / "thg0.03-seed0", trained)
    record = Record.load(trained)
    for pulses in (3.0, 10.0):
        for number, (attack, bits) in enumerate([("ensemble", None), ("flwc", None), ("flwc", 2)]):
            mapping = {"pair": False, "device_bits": bits, "cut_off": False}
            config = {**record.config, "pulses": pulses, "share": "same", "mapping": mapping}
            found = [dataclasses.replace(record.attacks[0], attack=attack, thg=0.03, accuracy=0.5 - number / 10)]
            again = {"kind": "evaluate", "source_run": "../..", "attacks": found, "config": config}
            add(trained / "evaluations" / f"{number}-{pulses}", record, **again)
    drawn = sections(trained)["swim"].figures["swim"].axes
    lines = [line.lines[0].get_ydata().tolist() for axes in drawn for line in axes.containers]
    assert sorted(lines) == [pytest.approx([y, y]) for y in (30, 40, 50)]


def test_times_of_a_gpu_and_a_cpu_are_not_averaged(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    for seed, (device, seconds) in enumerate([("cpu", 60.0), ("cpu", 120.0), ("H100", 6.0)]):
        found = [dataclasses.replace(one, seconds=seconds) for one in record.attacks]
        add(tmp_path / str(seed), record, seed=seed, device=device, attacks=found)
    for name in ("table1", "table4"):
        rows = sections(tmp_path)[name].rows.query("unit == 'min'")
        times = dict(zip(rows.what, rows["mean"], strict=True))
        assert times["time (lwc, cpu)"] == pytest.approx(1.5) and times["time (lwc, H100)"] == pytest.approx(0.1)
