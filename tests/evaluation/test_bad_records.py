"""Records with one wrong field: each is read, or skipped with a line that names the field."""

import copy
import json
import shutil

import pytest
from commands import run, shorten_ensembles

from worstcase.app import status
from worstcase.app.summary import print_summary
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import Record
from worstcase.paper import SECTIONS
from worstcase.report.write import write_report

WRONG = {
    "null": None,
    "a string": "x",
    "a number": 1.5,
    "a large number": 10**30,
    "a list": ["x"],
    "a dict": {"x": 1},
}
GONE = object()


def fields(record):
    """The paths of its fields. What an attack has as an earlier one does is left out, but for its parameters."""
    seen = set()
    for path in paths(record):
        kind = ("attacks", *path[2:]) if path[0] == "attacks" and "parameters" not in path else path
        if kind not in seen:
            seen.add(kind)
            yield path


def paths(content, before=()):
    """The path of every field. Lists count with their first item, and `attacks` with all."""
    found = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in found:
        if isinstance(key, int) and key and before != ("attacks",):
            return
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*before, key))


def mutated(content, path, value):
    changed = copy.deepcopy(content)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if value is GONE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return changed


@pytest.fixture(scope="session")
def record(made_once):
    """The record of a training with every kind of attack and a diagnosis of its worst chip."""

    def train(folder):
        small = [
            "method=vanilla",
            "trainer.max_epochs=1",
            "dataset.limit=100",
            "suite=compared",
            "diagnosis=short",
        ]
        run("src.train", *small, f"hydra.run.dir={folder / 'run'}", before=(shorten_ensembles,))

    return json.loads((made_once("compared", train) / "run" / "results.json").read_text())


def test_each_is_read_or_skipped_with_a_line_that_names_its_file_and_reason(record, tmp_path, caplog):
    root = tmp_path / "bad"
    total = 0
    for path in fields(record):
        for value in (*WRONG.values(), GONE):
            total += 1
            folder = root / f"{total}"
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(mutated(record, path, value)))
    assert total > 1500
    read = [folder for folder, _ in finished_runs([root])]
    skipped = [line for line in caplog.messages if line.startswith("skipped: ")]
    assert len(read) + len(skipped) == total
    assert len(skipped) > 0.4 * total
    for line in skipped:
        place, _, reason = line.removeprefix("skipped: ").partition(" holds no record of a run: ")
        assert place.startswith(str(root)) and reason and "\n" not in line
    print(f"{total} records: {len(read)} read, {len(skipped)} skipped")

    assert list(status.of_folders([root]))[-1].endswith("begun (at work, or killed)")
    write_report([root], tmp_path / "report", SECTIONS)
    assert not [line for line in caplog.messages if "left out" in line]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", "x"),
        ("config.mapping.pairs", True),
        ("samples", "x"),
        ("epochs", "x"),
        ("full_scale", "x"),
        ("certified.0.note", 1.5),
        ("attacks.0.history", "x"),
        ("attacks.0.parameters", "x"),
    ],
)
def test_the_wrong_field_is_named(record, tmp_path, field, value):
    path = [int(key) if key.isdigit() else key for key in field.split(".")]
    (tmp_path / "results.json").write_text(json.dumps(mutated(record, path, value)))
    with pytest.raises(ValueError, match=f"results.json holds no record of a run: {field}"):
        Record.load(tmp_path)


def test_half_of_a_pair_is_not_shown(record, tmp_path, capsys):
    changed = mutated(record, ["attacks", 0, "heldout_accuracy"], 0.5)
    (tmp_path / "results.json").write_text(json.dumps(changed))
    print_summary(Record.load(tmp_path), "folder")
    assert "held-out" not in capsys.readouterr().out


def test_the_commands_warn_of_what_they_skip_and_succeed(record, tmp_path):
    root = tmp_path / "outputs"
    for name, content in {
        "good": record,
        "quote": record | {"command": "python -m 'src.train"},
        "null": record | {"config": None},
        "lost": record | {"kind": "evaluate"} | {"source_run": "../\0nowhere"},
    }.items():
        (root / name).mkdir(parents=True)
        (root / name / "results.json").write_text(json.dumps(content))
    for words in (["src.status"], ["src.report", f"out={tmp_path / 'report'}"]):
        done = run(*words, f"folders=[{root}]")
        assert done.stderr.count("skipped: ") == 1
        assert f"{root / 'null' / 'results.json'} holds no record of a run: config: " in done.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "From the records of 3 finished runs" in page


def test_a_folder_that_vanishes_while_it_is_read_is_skipped(record, tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(record))
    load = Record.load

    def vanishing(folder):
        other = tmp_path / ("second" if folder.name == "first" else "first")
        shutil.rmtree(other, ignore_errors=True)
        return load(folder)

    monkeypatch.setattr(Record, "load", vanishing)
    assert len(list(finished_runs([tmp_path]))) == 1
