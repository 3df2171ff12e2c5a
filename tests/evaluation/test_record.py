import json
import os
import time
from pathlib import Path

import pytest
from records import attack_record, record

from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import Record, git_commit, write_json


def test_a_record_is_read_back_as_it_was_written(tmp_path):
    written = record(attack_record(), attack_record(attack="lwc", accuracy=0.125))
    written.save(tmp_path)
    assert Record.load(tmp_path) == written
    assert json.loads((tmp_path / "results.json").read_text())["attacked_accuracy"] == 0.125


@pytest.mark.parametrize("name", ["../../src/train.py", "/a", "a/b", "..\\a", ".", "..", ""])
def test_a_perturbation_outside_the_records_folder_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=r"attacks\.0\.perturbation"):
        record(attack_record(perturbation=name)).save(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": 0.95},
        {"feasible": False},
        {"max_relative_perturbation": 0.0300001},
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes):
    with pytest.raises(RuntimeError):
        record(attack_record(**changes))
    with pytest.raises(RuntimeError, match="certified"):
        record(certified_accuracy=0.3)
    proven = {"method": "interval", "thg": 0.03, "accuracy": 0.3, "seconds": 1.0}
    with pytest.raises(RuntimeError, match="more is certified"):
        record(certified=[proven])
    record(certified=[{**proven, "thg": 0.02}])  # the attack is at 0.03


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_deletes_what_a_killed_one_left_a_day_ago(tmp_path):
    for name, age in {".a.json.1.part": 86500, ".a.json.2.part": 86300, ".b.json.1.part": 86500}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_json(tmp_path / "a.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", ".a.json.2.part", ".b.json.1.part"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', "\x00\xff"]
)
def test_a_file_that_is_not_a_record_is_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="holds no record of a run"):
        Record.load(tmp_path)


def test_a_record_with_an_edited_attacked_accuracy_is_refused(tmp_path):
    record().save(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace('"attacked_accuracy": 0.25', '"attacked_accuracy": 0.99'))
    with pytest.raises(ValueError, match="not the lowest"):
        Record.load(tmp_path)


def test_a_folder_without_a_record_has_no_finished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        Record.load(tmp_path)


def test_finished_runs_come_newest_first_without_broken_ones(tmp_path, caplog):
    for age, name in enumerate(["new", "middle/deep", "old", "broken"]):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record(seed=age).save(folder)
        os.utime(folder / "results.json", (1000 - age, 1000 - age))
    (tmp_path / "broken" / "results.json").write_text("{")
    assert [found.seed for _, found in finished_runs([tmp_path, tmp_path / "none"])] == [0, 1, 2]
    assert f"skipped: {tmp_path / 'broken' / 'results.json'} holds no record of a run" in caplog.text


def test_folders_that_cannot_be_read_are_warned_of_once(tmp_path, monkeypatch, caplog):
    record().save(tmp_path)
    errors = {"closed": PermissionError(13, "Permission denied"), "deleted": FileNotFoundError(2, "No such file")}
    for name, error in errors.items():
        (tmp_path / name).mkdir()
        error.filename = str(tmp_path / name)
    scandir = os.scandir

    def failing(path):
        if error := errors.get(Path(path).name):
            raise error
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    assert [len(list(finished_runs([tmp_path]))) for _ in range(2)] == [1, 1]
    assert caplog.messages == [f"skipped: {tmp_path / 'closed'} cannot be read: Permission denied"]


def test_the_commit_is_a_full_hash_or_none():
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40
