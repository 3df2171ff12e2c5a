"""The leaderboard: a row is what the records say."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
from commands import REPOSITORY, run
from records import CONFIG, attack_record, record

from worstcase import zoo
from worstcase.evaluation.record import Record
from worstcase.leaderboard import leaderboard, write_page


def test_a_row_of_the_leaderboard_is_the_record(published):
    record = Record.load(published)
    lowest = record.attacked_accuracy
    page = leaderboard([published.parent], seen_from=published.parent.parent)
    assert f"| `vanilla` | 3 | 1 | {100 * record.clean_accuracy:.2f} |" in page
    assert f"| {100 * lowest:.2f} |" in page
    assert f"[{published.name}]({published.parent.name}/{published.name})" in page
    assert f"{record.parameters_perturbed:,} weights" in page


def test_what_another_attack_found_and_another_evaluation_proved_counts(tmp_path):
    method = {"trains_without_thg": True, "monitor": "val/accuracy"}
    for seed in (0, 1):
        config = CONFIG | {"seed": seed, "method": method}
        runs = {
            "": {"attacks": [attack_record(attack="ensemble", accuracy=0.5)], "kind": "train"},
            "pgd": {"attacks": [attack_record(attack="pgd", accuracy=0.25)]},
            "chips": {"attacks": [attack_record(attack="monte_carlo", accuracy=0.2)]},
            "proof": {"attacks": [attack_record(attack="flwc", accuracy=0.6)], "certified_accuracy": 0.125},
        }
        for name, said in runs.items():
            place = tmp_path / f"run{seed}" / name
            place.mkdir(parents=True)
            evaluation = {"kind": "evaluate", "source_run": "..", "git_commit": None}
            commit = {"git_commit": f"{seed}" * 9}
            record(config=config, seed=seed, **(evaluation if name else commit) | said).save(place)
    (row,) = [line for line in leaderboard([tmp_path]).splitlines() if line.startswith("| `vanilla`")]
    assert "| 12.50 ± 0.00 | 25.00 ± 0.00 | 0000000, 1111111 |" in row


def test_a_run_under_two_names_is_one_seed(published, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(published, tmp_path / name)
    page = leaderboard([tmp_path])
    assert page.count("| `vanilla` | 3 | 1 |") == 1 and "±" not in page


def test_runs_whose_boxes_differ_are_in_tables_of_their_own(published, tmp_path):
    own = Record.load(published)
    quantised = {
        "activation_bits": 4,
        "config": {**own.config, "model": {**own.config["model"], "activation_bits": 4}},
    }
    boxes = {
        "": {},
        'thg=[["fc*", 0.001], ["*", 0.03]]': {"config": {**own.config, "thg": {"fc*": 0.001, "*": 0.03}}},
        "cut_off=true": {"config": {**own.config, "mapping": {**own.config["mapping"], "cut_off": True}}},
        "full_scale=unit": {"full_scale": "unit", "config": {**own.config, "full_scale": "unit"}},
        "activation_bits=4": quantised,
    }
    for seed, changes in enumerate(boxes.values()):
        folder = shutil.copytree(published, tmp_path / str(seed))
        dataclasses.replace(own, **{"seed": seed, **changes}).save(folder)
    page = leaderboard([tmp_path])
    assert page.count("| `vanilla` | 3 | 1 |") == len(boxes) and "±" not in page
    assert all(name in page for name in boxes)


@pytest.fixture
def evaluated(published, tmp_path):
    """Writes an evaluation of a published network, which found 0.1 % and proved nothing, and returns its page."""
    folder = shutil.copytree(published, tmp_path / "zoo" / "lenet")
    own = Record.load(folder)
    lower = [dataclasses.replace(found, accuracy=0.001) for found in own.attacks]
    unproven = {"certified_accuracy": None, "certified": [], "certified_up_to": [], "diagnosis": None}

    def page(**changes):
        values = {"kind": "evaluate", "source_run": "../..", "attacks": lower, **unproven, **changes}
        place = folder / "evaluations" / "one"
        place.mkdir(parents=True, exist_ok=True)
        dataclasses.replace(own, **values).save(place)
        return leaderboard([tmp_path / "zoo"])

    before = leaderboard([tmp_path / "zoo"])
    return own, before, page


def test_an_evaluation_of_other_data_or_weights_is_in_no_row(evaluated):
    own, before, page = evaluated
    assert page(samples=50, decisions=50) == before
    assert page(config={**own.config, "exclude": ["conv1"]}) == before
    assert page(weight_bits=4) == before
    assert page(config={**own.config, "checkpoint": "other.pt"}) == before


def test_an_evaluation_of_the_same_data_is_in_its_row(evaluated):
    own, before, page = evaluated
    named = {key: one for key, one in own.config["dataset"].items() if one is not None}
    for changes in ({}, {"config": {**own.config, "dataset": {**named, "batch_size": 500, "val_fraction": 0.2}}}):
        assert "| 0.10 |" in page(**changes) and "| 0.10 |" not in before


def test_each_th_g_of_a_network_that_is_trained_without_it_has_a_table(evaluated):
    own, _, page = evaluated
    assert own.config["method"]["trains_without_thg"]
    lower = [dataclasses.replace(found, accuracy=0.001, thg=0.05) for found in own.attacks]
    both = page(attacks=lower, thg=0.05)
    assert "th_g 0.03" in both and "th_g 0.05" in both and both.count("| 0.10 |") == 1


@pytest.mark.parametrize("place", sorted(zoo.ZOO.glob("*/evaluations/*")), ids=lambda place: place.parts[-3])
def test_where_an_evaluation_made_the_numbers_its_command_stands_too(place):
    run = place.parts[-3]
    command = re.sub(r"run=\S+", f"run=zoo/{run}", Record.load(place).command)
    page = leaderboard([zoo.ZOO / run]).replace(str(zoo.ZOO), "zoo")
    assert f"    {Record.load(zoo.ZOO / run).command}\n" in page
    assert f"    {command}\n" in page


def test_the_page_is_what_the_command_writes(tmp_path):
    page = tmp_path / "docs" / "leaderboard.md"
    page.parent.mkdir()
    (tmp_path / "zoo").symlink_to(REPOSITORY / "zoo")
    run("worstcase.zoo", at=tmp_path)
    assert page.read_text() == Path(REPOSITORY, "docs", "leaderboard.md").read_text()


def test_a_page_elsewhere_links_to_the_zoo_and_one_of_no_networks_is_not_written(published, tmp_path):
    page = tmp_path / "page.md"
    write_page(page, published.parent)
    where = os.path.relpath(published.parent, tmp_path)
    assert f"[zoo/]({where})" in page.read_text() and f"({where}/{published.name})" in page.read_text()
    before = page.read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no networks in"):
        write_page(page, tmp_path / "empty")
    assert page.read_bytes() == before
