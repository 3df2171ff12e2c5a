"""From records alone to the page."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from commands import run

from worstcase.report import paper
from worstcase.report.rows import Run
from worstcase.report.write import SECTIONS, write_report


def lines(folder, name):
    return list(csv.DictReader((folder / f"{name}.csv").open()))


def test_every_figure_and_table_that_the_records_allow_and_no_other(made, folder):
    assert next(iter(made)) == "runs" and list(made)[1:] == [name for name in SECTIONS if name in made]
    assert made.keys() - {"runs"} == {
        *("fig1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8a"),
        *("table1", "table2", "table3", "table4", "table5", "methods"),
    }
    files = {path.name for path in folder.iterdir()}
    assert files == {
        ".report.json",
        "index.html",
        *(f"{name}.csv" for name in made),
        *(f"{name}.png" for section in made.values() for name in section.figures),
    }
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(section.figures) for section in made.values())
    assert not re.search(r'(src|href)="(https?:)?//', page)
    for name in SECTIONS.keys() - made.keys():
        assert name in page.split("Not measured yet")[1]


def test_mean_deviation_points_and_the_papers_value_stand_in_one_row(made, folder):
    (row,) = [row for row in lines(folder, "table5") if (row["method"], row["attack"]) == ("va", "lwc")]
    assert row["network"] == "LeNet, MNIST"
    assert float(row["mean"]) == pytest.approx(55) and float(row["deviation"]) == pytest.approx(50**0.5)
    assert [float(value) for value in row["each seed"].split()] == pytest.approx([50, 60])
    assert (row["paper"], row["paper deviation"], row["seeds"]) == ("81.58", "0.8", "2")
    assert row["scale"] == "mnist5k for mnist, float, 3 epochs"


def test_the_papers_value_stands_only_beside_its_own_attack(made, folder):
    for row in lines(folder, "table5"):
        assert (row["paper"] != "") == (row["attack"] == "lwc")
    assert {row["what"]: row["paper"] for row in lines(folder, "table1") if row["unit"] == "%"} == {
        "as programmed": "99.12",
        "lowest found (lwc)": "7.35",
        "lowest found (pgd)": "13.44",
        "lowest found (flwc)": "",
    }


def test_the_worst_chip_is_explained_from_its_own_record(made, explained):
    answers = {
        row.labels["class"]: row.values[0] for row in made["table3"].rows if "answers" in row.labels["quantity"]
    }
    assert sum(answers.values()) == explained.samples
    ends = made["fig5"].rows[0]
    assert ends.paper == paper.FIG5_AT_AN_END and 0 < ends.values[0] <= 100
    assert [row.paper for row in made["fig4"].rows if row.labels["chip"] == "worst"] == [0.47, 0.90]
    assert len(made["fig3"].rows) >= 4


def test_a_section_says_its_command_its_seeds_and_its_convention(made):
    section = made["fig8a"]
    assert section.seeds == "2 seeds (0, 1)" and "full_scale=layer_max" in section.convention
    assert section.command is None  # an evaluation of the user's is among its runs
    alone = dataclasses.replace(section, runs=[run for run in section.runs if run.record.kind == "train"])
    assert alone.command == (
        "python -m src.train -m experiment=fig8a scale=quick method=atrice,va,vanilla thg=0.01,0.03 seed=0,1"
    )
    assert len(section.commands) == len(section.runs)


def test_no_command_is_given_for_runs_that_no_one_command_makes(made):
    section = made["fig8a"]
    train = [run for run in section.runs if run.record.kind == "train"]
    longer = dataclasses.replace(train[-1].record, command=train[-1].record.command + " trainer.max_epochs=5")
    assert dataclasses.replace(section, runs=[*train[:-1], Run(longer, longer)]).command is None
    assert dataclasses.replace(section, runs=[run for run in train if run is not train[-1]]).command is None


def test_different_commits_and_red_flags_are_noted(made, explained):
    notes = " ".join(made["fig8a"].notes)
    assert "1 of its 9 runs raised red flags" in notes
    assert "different commits: " in notes and "aaaaaaaaa" in notes
    assert not any("commits:" in note for note in made["fig7"].notes)
    elsewhere = Run(explained, dataclasses.replace(explained, git_commit="b" * 40))
    notes = dataclasses.replace(made["fig5"], runs=[elsewhere]).notes
    assert any("commits:" in note and "bbbbbbbbb" in note for note in notes)


def test_the_command_writes_the_page_and_touches_no_record(study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    shown = run("src.report", f"folders=[{study}]", f"out={tmp_path}").stdout
    assert f"report: {tmp_path}/index.html" in shown and "Table V" in shown
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


def test_files_of_an_earlier_report_do_not_stay(study, tmp_path):
    write_report([study], tmp_path)
    (tmp_path / "fig8a.png").write_text("the user's own")
    write_report([study / "vanilla"], tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert "fig8a.png" in left and "table1.csv" in left and "table5.csv" not in left
    assert not list(tmp_path.glob("fig8a-*.png"))


def test_report_uploads_its_figures_and_tables(study: Path, tmp_path: Path):
    run("src.report", f"folders=[{study}]", f"out={tmp_path}", "wandb=true")
    (offline,) = tmp_path.glob("wandb/offline-run-*")
    uploaded = [str(file.relative_to(offline)) for file in offline.rglob("*") if file.is_file()]
    for made in [*tmp_path.glob("*.png"), *tmp_path.glob("*.csv")]:
        kind = ".table.json" if made.suffix == ".csv" else ".png"
        assert any(made.stem in name and name.endswith(kind) for name in uploaded), made.name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("folders=[nowhere]", "there is no folder nowhere"),
        ("folders=[tests/report]", "no finished runs below tests/report; make some with"),
        ("folder=[x]", "there is no setting folder; did you mean folders?"),
    ],
)
def test_bad_settings_are_one_line(override, message):
    done = run("src.report", override, fails=True)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_papers_tables_are_whole():
    for table in (paper.TABLE1, paper.TABLE1_MINUTES, paper.TABLE2):
        assert table.keys() == paper.NETWORKS.keys() == paper.BITS.keys()
    assert paper.TABLE4[paper.CONVNET]["flwc"] == paper.TABLE6[0.03]["vanilla"]
    assert json.dumps(sorted(paper.TABLE6)) == "[0.0, 0.01, 0.02, 0.03, 0.04]"


# ---- the page in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the dev extra")
    installed = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        executable = installed or playwright.chromium.executable_path
        if not Path(executable).exists():
            pytest.skip("no browser: apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")], ids=["desktop", "phone"])
def test_a_browser_shows_every_figure_and_reports_no_error(browser, made, folder, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto((folder / "index.html").as_uri(), wait_until="load")
    assert said == [] and asked.count("file") == 1 and set(asked) <= {"file", "data"}
    pictures = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.id, i.complete && i.naturalWidth, i.getBoundingClientRect().width])"
    )
    assert {name for name, _, _ in pictures} == {
        f"picture-{name}" for section in made.values() for name in section.figures
    }
    assert all(natural > 300 and 100 < shown <= width for _, natural, shown in pictures)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll on their own
    assert page.locator("table").count() == page.locator("section").count() == len(made)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    page.close()
