"""Which numbers stand in one row, and as what."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
from studies import add, labels, record_of, sections

from worstcase.evaluation.record import Record
from worstcase.report import paper
from worstcase.report.rows import Run, read_runs, results


def test_a_regular_network_counts_at_every_th_g_and_others_at_their_own(made):
    found = {(row.labels["method"], row.labels["th_g"]) for row in made["fig8a"].rows}
    assert found == {(method, thg) for method in ("vanilla", "va", "atrice") for thg in ("0.01", "0.03")}
    record = made["fig8a"].runs[0].record
    config = {**record.config, "thg": 0.02, "method": {"_target_": "atrice"}}
    attacked_elsewhere = dataclasses.replace(record, method="atrice", config=config)
    assert not any(r.as_trained for r in results([Run(attacked_elsewhere, attacked_elsewhere)]))


def test_settings_that_differ_are_not_pooled_as_seeds(study, trained, tmp_path):
    record = Record.load(study / "va" / "thg0.03-seed1")
    other = {**record.config, "model": {**record.config["model"], "optimizer": {"lr": 1.0}}}
    add(tmp_path / "other", record, config=other)
    rows = [row for row in sections(study, tmp_path)["table5"].rows if row.labels == labels("va", "lwc")]
    assert sorted(len(row.values) for row in rows) == [1, 2]
    assert sorted(row.scale.split(", ")[-1] for row in rows) == ["lr=0.002", "lr=1.0"]


def test_an_evaluation_on_other_batches_has_a_row_of_its_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    for seed in (0, 1):
        trained = tmp_path / "study" / "va" / f"thg0.03-seed{seed}"
        record = Record.load(trained)
        other = {**record.config, "dataset": {**record.config["dataset"], "batch_size": 32 + seed}}
        found = [dataclasses.replace(record.attacks[0], attack="ensemble", thg=0.03)]
        again = {"kind": "evaluate", "source_run": "../..", "attacks": found}
        add(trained / "evaluations" / "one", record, **again, config=other)
    made = sections(tmp_path / "study")["table5"].rows
    rows = [row for row in made if row.labels == labels("va", "ensemble")]
    assert [row.scale.split(", ")[-1] for row in rows] == ["batch_size=32", "batch_size=33"]


def test_networks_trained_with_other_bounds_have_rows_of_their_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed1"
    record = Record.load(trained)
    dataclasses.replace(record, config={**record.config, "full_scale": "unit"}).save(trained)
    made = sections(tmp_path / "study")["table5"].rows
    rows = [row for row in made if row.labels == labels("va", "lwc")]
    assert [row.scale.split(", ")[-1] for row in rows] == ["full_scale=layer_max", "full_scale=unit"]


def test_a_network_selected_by_its_worst_case_counts_at_its_own_th_g(made):
    record = next(run.record for run in made["fig8a"].runs if run.record.method == "vanilla")
    method = {**record.config["method"], "monitor": "val/attacked_accuracy"}
    selected = dataclasses.replace(record, config={**record.config, "thg": 0.03, "method": method})
    assert {r.thg for r in results([Run(record, record)]) if r.as_trained} == {0.01, 0.03}
    assert {r.thg for r in results([Run(selected, selected)]) if r.as_trained} == {0.03}


def test_an_evaluations_training_is_found_outside_the_folders_and_unknown_if_it_is_gone(study, tmp_path):
    trained, out = tmp_path / "trained", tmp_path / "evaluations" / "one"
    shutil.copytree(study / "atrice" / "thg0.03-seed1", trained)
    add(out, Record.load(trained), kind="evaluate", source_run="../../trained")
    (run,) = read_runs([tmp_path / "evaluations"])
    assert run.trained == Record.load(trained) and run.seed == 1
    shutil.rmtree(trained)
    (run,) = read_runs([tmp_path / "evaluations"])
    assert run.trained is None and not any(r.as_trained for r in results([run]))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"exclude": ["conv1"]}, "some layers exact"),
        ({"model": {"variant": "lecun98"}}, "variant lecun98"),
    ],
)
def test_other_networks_than_the_papers_are_another_scale(config, scale, explained):
    other = dataclasses.replace(explained, config={**explained.config, **config}, samples=500)
    assert {scale, "500 test images"} <= set(Run(other, other).differences())


def test_a_network_without_sampled_chips_stays_in_table_i(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    sampled = dataclasses.replace(record.attacks[0], attack="monte_carlo", thg=0.03, parameters={"instances": 200})
    add(tmp_path / "sampled", record, attacks=[sampled], config={**record.config, "trainer": {"max_epochs": 9}})
    add(tmp_path / "convnet", record, model="convnet", dataset="cifar10", samples=10_000)
    shown = {(row.labels["network"], row.labels["what"]) for row in sections(tmp_path, study)["table1"].rows}
    assert ("LeNet, MNIST", "lowest found (monte_carlo)") in shown
    assert ("LeNet, MNIST", "lowest found (flwc)") not in shown  # of other networks than the sampled one
    assert ("ConvNet, CIFAR-10", "lowest found (flwc)") in shown


def test_fig7_from_evaluations_of_one_number_of_steps_each(study, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(study / "vanilla" / "thg0.03-seed0", trained)
    record = Record.load(trained)
    dataclasses.replace(record, attacks=record.attacks[:1]).save(trained)
    for steps in (1, 2, 5):
        found = [dataclasses.replace(record.attacks[-1], seconds=steps, parameters={"steps": steps})]
        add(trained / "evaluations" / str(steps), record, kind="evaluate", source_run="../..", attacks=found)
    (axes,) = sections(tmp_path)["fig7"].figures["fig7"].axes
    assert {text.get_text() for text in axes.texts} == {"1", "2", "5"}


def test_a_network_that_two_experiments_trained_is_one_of_its_seed(study, tmp_path):
    """As the regular networks of Table I and of Fig. 8."""
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    lower = [dataclasses.replace(record.attacks[0], thg=0.03, accuracy=0.2)]
    add(tmp_path / "again", record, attacks=lower, command="python -m src.train experiment=table1")
    made = sections(study, tmp_path)
    (row,) = [row for row in made["table5"].rows if row.labels == labels("vanilla", "lwc")]
    assert row.values == pytest.approx([20, 60])
    assert "methods-1" in made["methods"].figures


def test_an_evaluations_seed_is_not_another_trainings(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed0"
    record = Record.load(trained)
    add(trained / "evaluations" / "lwc", record, kind="evaluate", source_run="../..", seed=7)
    made = sections(tmp_path / "study")
    (row,) = [row for row in made["table5"].rows if row.labels == labels("va", "lwc")]
    assert row.values == pytest.approx([50, 60])
    assert made["table5"].seeds == "2 seeds (0, 1)"


def test_an_attack_in_other_settings_has_a_row_of_its_own(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    trained = tmp_path / "study" / "va" / "thg0.03-seed0"
    record = Record.load(trained)
    stronger = dataclasses.replace(record.attacks[1], accuracy=0.3, parameters={"steps": 10, "epochs": 50})
    add(trained / "evaluations" / "lwc", record, kind="evaluate", source_run="../..", attacks=[stronger])
    made = sections(tmp_path / "study")
    rows = [row for row in made["table5"].rows if row.labels == labels("va", "lwc")]
    assert sorted((row.values, "epochs=50" in row.scale) for row in rows) == [([30], True), ([50, 60], False)]


def test_th_g_from_a_range_of_floats_is_that_of_the_tables(study, tmp_path):
    thg = 3 * 0.1 / 10
    assert thg != 0.03
    add(
        tmp_path / "ranged",
        record_of(Record.load(study / "va" / "thg0.03-seed0"), method="trice", seed=0, thgs=[thg]),
    )
    rows = sections(study, tmp_path)["methods"].rows
    assert any(row.labels == labels("trice", "lwc") for row in rows)


def test_a_method_in_several_settings_has_a_curve_of_each(study, tmp_path):
    for thg in (0.01, 0.03):
        record = Record.load(study / "atrice" / f"thg{thg}-seed0")
        other = {**record.config, "method": {**record.config["method"], "alpha": 0.3}}
        add(tmp_path / f"other{thg}", record, config=other)
    made = sections(study, tmp_path)
    (legend,) = made["fig8a"].figures["fig8a-lwc"].legends
    named = {text.get_text().rpartition(", ")[0] for text in legend.get_texts()}
    assert named == {"vanilla", "va", "atrice", "atrice, alpha=0.3"}


def test_the_first_curve_has_the_plain_name_whatever_was_run_before(study, tmp_path):
    """As by the README's first command, which leaves one point of another scale."""
    record = Record.load(study / "atrice" / "thg0.03-seed0")
    add(tmp_path / "before", record, config={**record.config, "trainer": {"max_epochs": 40}})
    os.utime(tmp_path / "before" / "results.json", (0, 0))
    assert list(sections(tmp_path, study)["fig8a"].figures) == ["fig8a-flwc", "fig8a-lwc"]


def test_a_network_that_the_paper_has_not_is_not_called_its_scale(study, tmp_path):
    add(tmp_path / "own", Record.load(study / "va" / "thg0.03-seed0"), model="own")
    made = sections(study, tmp_path)
    (scale,) = {row.scale for row in made["methods"].rows if row.labels["network"].startswith("own")}
    assert scale == "not in the paper"


def test_fewer_sampled_chips_than_the_papers_are_another_scale(study, tmp_path):
    record = Record.load(study / "vanilla" / "thg0.03-seed0")
    sampled = dataclasses.replace(record.attacks[0], attack="monte_carlo", thg=0.03, parameters={"instances": 200})
    add(tmp_path / "sampled", record, attacks=[sampled])
    scales = {row.labels["what"]: row.scale for row in sections(tmp_path)["table1"].rows}
    assert scales["lowest found (monte_carlo)"] == scales["as programmed"] + ", 200 chips"


def test_torchvisions_networks_given_to_an_evaluation_are_the_papers(explained):
    for net, network in (
        ("torchvision.models:resnet18", paper.IMAGENET),
        ("torchvision.models:vgg16", paper.VGG16),
    ):
        given = dataclasses.replace(explained, model=net, dataset="imagenet", method=None)
        assert Run(given, None).network == network


def test_an_evaluation_knows_its_training(study):
    (evaluation,) = [run for run in read_runs([study]) if run.record.kind == "evaluate"]
    assert evaluation.trained.kind == "train" and evaluation.trained.seed == evaluation.record.seed
