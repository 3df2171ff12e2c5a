"""Every finished run is shown, and records from others do no harm."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import logging
import re

import pandas as pd
import pytest
from studies import add, own_network

from worstcase import results_frame
from worstcase.evaluation.record import Record
from worstcase.paper import SECTIONS
from worstcase.report.rows import as_csv, columns
from worstcase.report.section import Section
from worstcase.report.write import write_report
from worstcase.report.your_runs import your_runs

HOSTILE = "\"></td></section><script>alert(1)</script>'\n\r\t\x00\x1b[31m\u202e{{ 7*7 }}$\\frac{$"
NAME = HOSTILE.replace("$", "")  # which a record refuses in a name


class Page(html.parser.HTMLParser):
    """The tags and ids of a page, and the text of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells and self.tags[-1] == "td":
            self.cells[-1] += data.strip("\n")


def report(tmp_path, *records: Record) -> tuple[list[Section], str]:
    for number, record in enumerate(records):
        add(tmp_path / "runs" / str(number), record)
    sections = write_report([tmp_path / "runs"], tmp_path / "out", SECTIONS)
    return sections, (tmp_path / "out" / "index.html").read_text()


def test_a_run_outside_the_papers_figures_has_a_page(tmp_path):
    sections, page = report(tmp_path, own_network(flags=["one", "two"]))
    assert [section.name for section in sections] == ["runs"]
    row = ["mine:Net", "mine", "vanilla", "0.02", "3"]
    assert Page(page).cells == [
        *(*row, "flwc", "90.00 %", "50.00 %", "-", "2"),
        *(*row, "lwc", "90.00 %", "25.00 %", "-", "2"),
    ]
    with (tmp_path / "out" / "runs.csv").open() as lines:
        first, second = csv.DictReader(lines)
    assert (float(first["clean"]), float(first["attacked"])) == pytest.approx((90, 50))
    assert first["unit"] == "%" and first["certified"] == ""
    assert (second["attack"], second["flags"], second["seed"]) == ("lwc", "2", "3")
    assert "From the records of 1 finished run." in page
    assert [
        name for name in re.split(r"[ ,.<]+", page.split("enough runs for these:")[1]) if name in SECTIONS
    ] == list(SECTIONS)


def test_the_picture_has_a_dot_for_each_attack_in_the_colour_of_its_method(tmp_path):
    methods = [f"method {number}" for number in range(100)]
    runs = [own_network(method=method, seed=seed) for method in methods for seed in (0, 1)]
    runs += [own_network(method="common", seed=seed) for seed in range(3)]
    sections, _ = report(tmp_path, *runs)
    axes = sections[0].figures["runs"].axes[0]
    diagonal, *drawn = axes.lines
    assert sum(len(line.get_xdata()) for line in drawn) == 2 * len(runs)
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 100]
    assert axes.get_xlim() == axes.get_ylim() == (0, 100)
    (legend,) = sections[0].figures["runs"].legends
    named = [text.get_text() for text in legend.get_texts()]
    assert len(named) == len(drawn) == 20 and {"common", "82 other methods"} <= set(named)
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == len(drawn)


def test_each_row_has_the_numbers_of_its_own_run(tmp_path):
    """In whatever order the runs finished."""
    for number, (seed, lowest, proven) in enumerate([(2, 0.3, 0.2), (0, 0.5, None), (1, 0.4, 0.1)]):
        attack = dataclasses.replace(own_network().attacks[0], accuracy=lowest)
        one = own_network(seed=seed, attacks=[attack], certified_accuracy=proven)
        add(tmp_path / str(number), one)
    header, body = columns(your_runs(results_frame([tmp_path])).rows)
    shown = [dict(zip(header, line, strict=True)) for line in body]
    assert [(of["seed"], of["clean"], of["attacked"], of["certified"]) for of in shown] == [
        ("0", "90.00 %", "50.00 %", "-"),
        ("1", "90.00 %", "40.00 %", "10.00 %"),
        ("2", "90.00 %", "30.00 %", "20.00 %"),
    ]


def test_the_table_says_how_runs_of_one_method_differ(tmp_path):
    for epochs in (1, 9):
        config = {**own_network().config, "trainer": {"max_epochs": epochs, "deterministic": True}}
        add(tmp_path / str(epochs), own_network(config=config))
    rows = your_runs(results_frame([tmp_path])).rows
    assert set(rows["differs in"]) == {"max_epochs=1", "max_epochs=9"}


def test_each_network_has_a_line_over_th_g_and_bars_down_to_its_certificate(tmp_path):
    def found(thg, accuracy):
        return dataclasses.replace(
            own_network().attacks[0], thg=thg, accuracy=accuracy, max_relative_perturbation=0.0
        )

    attacks = [found(0.01, 0.7), found(0.03, 0.4), found(0.03, 0.3)]
    several = own_network(thg=0.03, attacks=attacks, certified_accuracy=0.1)
    sections, _ = report(tmp_path, several, own_network(seed=4), own_network(dataset="other", thg=0.02))
    mine, other = sections[0].figures["runs-thg"].axes
    assert [axes.get_title() for axes in (mine, other)] == ["mine:Net, mine", "mine:Net, other"]
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in mine.lines}
    assert drawn.keys() == {(0, 0.01, 0.03), (0, 0.02)}
    assert drawn[0, 0.01, 0.03] == pytest.approx([90, 70, 30]) and drawn[0, 0.02] == pytest.approx([90, 25])
    assert len(other.lines) == 1
    bars = [segment.tolist() for bars in mine.collections for segment in bars.get_segments() if segment.size]
    assert sorted(end for bar in bars for _, end in bar) == pytest.approx([10, 10, 30, 70])


def test_of_several_proofs_of_a_network_the_strongest_is_its_bar(tmp_path):
    add(tmp_path / "run", own_network(certified_accuracy=0.1))
    again = own_network(kind="evaluate", source_run="../..", certified_accuracy=0.2)
    add(tmp_path / "run" / "evaluations" / "one", again)
    (axes,) = your_runs(results_frame([tmp_path])).figures["runs-thg"].axes
    (bar,) = [segment.tolist() for bars in axes.collections for segment in bars.get_segments()]
    assert [end for _, end in bar] == pytest.approx([20, 25])


def test_given_weights_of_two_evaluations_are_two_networks(tmp_path):
    given = {"kind": "evaluate", "method": None, "train_seconds": None, "epochs": None}
    sections, _ = report(tmp_path, own_network(**given), own_network(**given, clean_accuracy=0.6))
    (axes,) = sections[0].figures["runs-thg"].axes
    assert sorted(line.get_ydata()[0] for line in axes.lines) == pytest.approx([60, 90])


def test_given_weights_have_no_training_seed(tmp_path):
    given = own_network(kind="evaluate", method=None, train_seconds=None, epochs=None)
    sections, _ = report(tmp_path, given)
    rows = sections[0].rows
    assert set(zip(rows.method, rows.seed, strict=True)) == {("given weights", "-")}
    assert sections[0].seeds == "given weights"


def test_text_from_a_record_stays_text_on_the_page(tmp_path):
    hostile = own_network(method=NAME, model=NAME, dataset=NAME, command=HOSTILE, flags=[HOSTILE])
    hostile.attacks[0].attack = NAME
    sections, page = report(tmp_path, hostile, own_network(model="m" * 200, method="n" * 200))
    _, plain = report(tmp_path / "plain", own_network(flags=["x"]), own_network(model="m", method="n"))
    assert Page(page).tags == Page(plain).tags
    assert Page(page).ids == Page(plain).ids == ["runs", "picture-runs", "picture-runs-thg"]
    shown = next(cell for cell in Page(page).cells if "alert" in cell)
    assert shown.startswith('"></td></section><script>') and "\\n\\r\\t\\x00\\x1b[31m\\u202e{{ 7*7 }}" in shown
    assert max(map(len, Page(page).cells)) < 300
    assert all(char.isprintable() or char == "\n" for char in page)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(".report.json", "index.html", "runs.csv", "runs.png", "runs-thg.png")
    }
    assert [section.name for section in sections] == ["runs"]


@pytest.mark.parametrize("config", [{}, {"thg": [0.01, 0.02]}])
@pytest.mark.parametrize("source", [None, "."], ids=["given", "of itself"])
def test_a_run_with_an_incomplete_configuration_is_shown(tmp_path, config, source):
    known = {"kind": "evaluate", "source_run": source, "config": config, "command": "python 'open"}
    add(tmp_path / "odd", own_network(model="lenet", dataset="mnist", **known))
    results = results_frame([tmp_path])
    assert (results.training.notna() == (source == ".")).all()
    made = {name: section for name, make in {"runs": your_runs, **SECTIONS}.items() if (section := make(results))}
    assert made.keys() == {"runs"}
    assert made["runs"].sweeps == [] and made["runs"].commands == ["python 'open"]


def test_only_runs_that_a_command_made_are_said_to_be_repeated_by_one(tmp_path):
    in_python = own_network(kind="evaluate", command="worstcase.evaluate")
    assert "commands that repeat" not in report(tmp_path / "python", in_python)[1]
    page = report(tmp_path / "both", in_python, own_network(seed=4))[1]
    assert "commands that repeat 1 run<" in page and "worstcase.evaluate" not in page


def test_a_training_that_cannot_be_read_is_unknown(tmp_path, caplog):
    add(tmp_path / "training", own_network())
    (tmp_path / "training" / "results.json").write_text("{")
    for number, source in enumerate(("../../training", "a\x00b", "/proc/1/root/x" * 1000)):
        add(tmp_path / "runs" / str(number), own_network(kind="evaluate", source_run=source))
    assert results_frame([tmp_path / "runs"]).groupby("folder").training.count().tolist() == [0] * 3
    messages = [record.getMessage() for record in caplog.records if "training of" in record.getMessage()]
    assert messages and all("\n" not in line and "\x00" not in line for line in messages)


@pytest.mark.parametrize("where", ["make", "draw"])
def test_a_section_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, caplog, where):
    def fails(results):
        if where == "make":
            raise KeyError("odd\nname")
        made = your_runs(results)
        made.figures["runs"].axes[0].set_title("$\\frac{$")
        return dataclasses.replace(made, name="fig1", figures={"fig1": made.figures["runs"]})

    monkeypatch.setitem(SECTIONS, "fig1", fails)
    with caplog.at_level(logging.WARNING):
        sections, page = report(tmp_path, own_network())
    assert [section.name for section in sections] == ["runs"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("fig1 is left out: ") and "\n" not in warning
    assert "fig1" in page.split("Left out")[1] and "fig1" not in page.split("enough runs for these:")[1]
    assert not list((tmp_path / "out").glob("fig1*"))


def test_a_section_cannot_name_files_outside_the_report(tmp_path, monkeypatch, caplog):
    def named(results):
        return dataclasses.replace(your_runs(results), name="../fig1")

    monkeypatch.setitem(SECTIONS, "fig1", named)
    report(tmp_path, own_network())
    assert "fig1 is left out: ValueError: ../fig1.csv is not named after a part of the report" in caplog.text
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-", "'-"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("-1.5", "-1.5"),
        ("+3e-05", "+3e-05"),
        ("-1\n=1", "'-1\n=1"),
        ("lwc", "lwc"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_no_cell_of_the_csv_is_a_formula(cell, written):
    values = {"unit": "%", "mean": 0.0075, "each seed": [-0.005, 0.02]}
    text = as_csv(pd.DataFrame([{cell: cell, "other": "x", **values, "scale": cell}]))
    header, line = csv.reader(text.splitlines(keepends=True))
    assert header[0] == line[0] == line[-1] == written
    assert line[header.index("each seed")] == "-0.5 2" and float(line[header.index("mean")]) == 0.75


def test_a_method_named_like_a_formula_is_text_in_every_csv(tmp_path):
    report(tmp_path, own_network(method="=1+1"))
    cells = [
        cell for file in (tmp_path / "out").glob("*.csv") for line in csv.reader(file.open()) for cell in line
    ]
    assert "'=1+1" in cells and not [cell for cell in cells if cell.startswith("=")]
