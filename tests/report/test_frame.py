import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from records import CONFIG, attack_record, record

from worstcase import results_frame
from worstcase.report.frame import COLUMNS, SETTINGS


@pytest.fixture
def runs(tmp_path):
    """A training, its evaluation at two th_g, and an evaluation of given weights."""
    trained = tmp_path / "trained"
    folders = [trained, trained / "evaluations" / "a", tmp_path / "given"]
    at = [
        attack_record(attack="lwc", thg=thg, accuracy=low, max_relative_perturbation=0.0)
        for thg, low in ((0.01, 0.5), (0.02, 0.25))
    ]
    records = [
        record(config={**CONFIG, "thg": 0.05}, seed=7, train_seconds=3.5),
        record(*at, kind="evaluate", source_run="../..", train_seconds=None, flags=["one", "two"], thg=0.02),
        record(attack_record(seed=5), kind="evaluate", method=None, train_seconds=None, epochs=None),
    ]
    for folder, one in zip(folders, records, strict=True):
        folder.mkdir(parents=True)
        one.save(folder)
    return tmp_path


def test_each_attack_and_th_g_has_a_row_with_the_facts_of_its_training(runs):
    frame = results_frame([runs])
    assert list(frame.columns) == list(COLUMNS) and len(frame) == 4
    of = frame[frame.attack == "lwc"].sort_values("thg")
    assert of.attacked_accuracy.tolist() == [0.5, 0.25] and of.thg.tolist() == [0.01, 0.02]
    assert of.seed.tolist() == [7, 7] and of.trained_thg.tolist() == [0.05, 0.05]
    assert of.train_seconds.tolist() == [3.5, 3.5] and of["flags"].tolist() == [2, 2]
    assert set(frame.training.dropna()) == {str(runs / "trained")} and frame.training.notna().sum() == 3
    (given,) = frame[frame.method.isna()].to_dict("records")
    assert given["attack_seed"] == 5 and given["as_trained"]
    assert all(pd.isna(given[name]) for name in ("seed", "training", "trained_thg", "train_seconds"))
    assert frame.certified_accuracy.isna().all()


def test_one_folder_needs_no_list(runs):
    assert len(results_frame(runs)) == len(results_frame(str(runs))) == len(results_frame([runs])) == 4


def test_the_frame_can_be_grouped_over_seeds(runs):
    means = results_frame([str(runs)]).groupby(["network", "method", "attack", "thg"]).attacked_accuracy.mean()
    assert means["lenet", "vanilla", "lwc", 0.02] == 0.25


def test_rows_that_differ_in_more_than_the_seed_have_different_settings(runs):
    other = {**CONFIG, "seed": 8, "trainer": {"max_epochs": 9}}
    for name, config in (("again", {**CONFIG, "seed": 8}), ("longer", other)):
        (runs / name).mkdir()
        record(config=config, seed=8).save(runs / name)
    frame = results_frame([runs]).query("kind == 'train'")
    assert frame.groupby(SETTINGS).seed.agg(set).tolist() == [{7, 8}, {8}]
    (longer,) = frame.network_settings[frame.network_settings.str.contains("max_epochs")]
    assert json.loads(longer)["trainer.max_epochs"] == 9
    assert json.loads(frame.attack_settings.iloc[0]) == {"steps": 10}


def test_trainings_with_other_callbacks_are_not_pooled(runs):
    own = {"worst_case_at_test": {"attacks": 1}, "worst_case_per_epoch": None}
    swa = {"swa": {"_target_": "lightning.pytorch.callbacks.StochasticWeightAveraging", "swa_lrs": 0.01}}
    for seed, said in ((8, own), (9, own | swa), (10, own | {"swa": None})):
        (runs / str(seed)).mkdir()
        record(config={**CONFIG, "seed": seed, "callbacks": said}, seed=seed).save(runs / str(seed))
    frame = results_frame([runs]).query("kind == 'train'")
    assert sorted(frame.groupby(SETTINGS).seed.agg(sorted)) == [[7, 8, 10], [9]]
    assert json.loads(frame.network_settings[frame.seed == 9].item())["callbacks.swa.swa_lrs"] == 0.01


def test_trainings_with_other_arrays_are_not_pooled(runs):
    for seed, arrays in ((8, []), (9, ["emb"])):
        (runs / str(seed)).mkdir()
        record(config={**CONFIG, "seed": seed, "arrays": arrays}, seed=seed).save(runs / str(seed))
    frame = results_frame([runs]).query("kind == 'train'")
    assert sorted(frame.groupby("network_settings").seed.agg(sorted)) == [[7, 8], [9]]


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True),
        ({"method": "va"}, False),
        ({"model": "convnet"}, False),
        ({"config": CONFIG | {"weights": "bb"}}, False),
        ({"config": CONFIG | {"weights": "bb", "checkpoint": "x.pt"}}, True),
    ],
    ids=["same", "method", "network", "weights", "checkpoint"],
)
def test_an_evaluation_of_another_network_than_the_training_beside_it_is_not_of_that_training(
    change, known, tmp_path, caplog
):
    place = tmp_path / "evaluations" / "a"
    place.mkdir(parents=True)
    record(seed=7, weights_digest="aa").save(tmp_path)
    said = {"kind": "evaluate", "source_run": "../..", "config": CONFIG | {"weights": "aa"}}
    record(**said | change).save(place)
    (row,) = results_frame(tmp_path).query("kind == 'evaluate'").to_dict("records")
    assert (row["seed"] == 7) is (row["training"] == str(tmp_path)) is row["as_trained"] is known
    assert ("is unknown" in caplog.text) is not known


def test_a_checkpoint_that_was_overwritten_between_two_evaluations_is_another_network(runs):
    for digest in ("aa", "bb"):
        place = runs / "trained" / "evaluations" / digest
        place.mkdir()
        config = {**CONFIG, "checkpoint": "x.pt", "weights": digest}
        record(config=config, kind="evaluate", source_run="../..").save(place)
    frame = results_frame([runs])
    said = frame.network_settings.map(json.loads)
    assert set(said[said.str["checkpoint"] == "x.pt"].str["weights"]) == {"aa", "bb"}
    assert "weights" not in said[frame.kind == "train"].item()


@pytest.mark.parametrize(
    ("said", "trained"),
    [({"thg": 0.03}, 0.03), ({"thg": {"fc*": 0.01, "*": 0.02}}, 0.02), ({"thg": 0.03, "arrays": ["fc*"]}, 0.03)],
)
def test_what_pulses_buy_after_a_training_is_not_what_it_was_trained_for(said, trained, tmp_path):
    config = {**CONFIG, **said, "pulses": 4.0, "share": "swim", "programming": {"sigma": 0.1}}
    found = attack_record(thg=0.1, max_relative_perturbation=0.1)
    record(found, config=config, thg=0.1).save(tmp_path)
    assert results_frame(tmp_path).trained_thg.tolist() == [trained]
    record(found, config={**CONFIG, "thg": {"fc*": 0.01, "*": 0.1}}, thg=0.1).save(tmp_path)
    assert results_frame(tmp_path).trained_thg.tolist() == [0.1]


def test_a_record_without_parameters_is_none():
    with pytest.raises(ValueError, match="parameters"):
        record(parameters=0).check(Path("run"))


def test_the_sweep_of_a_run_is_read_from_its_record(runs):
    (runs / "job").mkdir()
    record(sweep="python -m src.train -m seed=0,1").save(runs / "job")
    assert results_frame([runs]).set_index("folder").sweep.dropna().to_dict() == {
        str(runs / "job"): "python -m src.train -m seed=0,1"
    }


def test_every_number_of_a_record_is_a_column_or_left_out_on_purpose():
    left_out = {"schema_version", "thg", "decisions", "parameters", "parameters_perturbed", "threads"}
    numbers = {f.name for f in dataclasses.fields(record()) if isinstance(getattr(record(), f.name), int | float)}
    assert numbers - left_out <= COLUMNS.keys()


def test_the_frame_needs_no_pytorch():
    code = "import worstcase, sys; worstcase.results_frame(['none']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
