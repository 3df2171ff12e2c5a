"""The page is made from records alone."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from commands import run
from studies import SWEEP, add, own_network

from worstcase.paper import SECTIONS
from worstcase.report.write import write_report


def test_the_report_has_exactly_the_figures_and_tables_that_the_records_allow(made, report_folder):
    assert next(iter(made)) == "runs" and list(made)[1:] == [name for name in SECTIONS if name in made]
    assert made.keys() - {"runs"} == {
        *("fig1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8a"),
        *("table1", "table2", "table3", "table4", "table5", "methods"),
    }
    files = {path.name for path in report_folder.iterdir()}
    assert files == {
        ".report.json",
        "index.html",
        *(f"{name}.csv" for name in made),
        *(f"{name}.png" for section in made.values() for name in section.figures),
    }
    page = (report_folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == sum(len(section.figures) for section in made.values())
    assert not re.search(r'(src|href)="(https?:)?//', page)
    for name in SECTIONS.keys() - made.keys():
        assert name in page.split("Not measured yet")[1]


def test_a_section_names_its_sweeps_seeds_and_unit_of_th_g(made):
    section = made["fig8a"]
    assert section.seeds == "2 seeds (0, 1)" and "full_scale=layer_max" in section.convention
    assert section.sweeps == []  # one of its runs is a single evaluation
    alone = dataclasses.replace(section, results=section.results[section.results.kind == "train"])
    assert alone.sweeps == [SWEEP]
    other = alone.results.sweep.where(alone.results.seed == 0, "python -m src.train -m seed=1")
    two = dataclasses.replace(alone, results=alone.results.assign(sweep=other))
    assert two.sweeps == [SWEEP, "python -m src.train -m seed=1"]
    assert len(section.commands) == len(section.runs)


def test_the_page_shows_each_sweep_on_its_own_line(tmp_path):
    sweeps = ["python -m src.train -m seed=0,1", "python -m src.train -m seed=2,3"]
    for seed in range(4):
        add(tmp_path / "runs" / str(seed), own_network(seed=seed), sweep=sweeps[seed // 2])
    write_report([tmp_path / "runs"], tmp_path / "out", {})
    assert "<pre>\n" + "\n".join(sweeps) + "\n</pre>" in (tmp_path / "out" / "index.html").read_text()


def test_different_commits_and_red_flags_are_noted(made):
    notes = " ".join(made["fig8a"].notes)
    assert "1 of its 9 runs raised red flags" in notes
    assert "different commits: " in notes and "aaaaaaaaa" in notes
    assert not any("commits:" in note for note in made["fig7"].notes)
    elsewhere = made["fig5"].results.assign(trained_commit="b" * 40)
    notes = dataclasses.replace(made["fig5"], results=elsewhere).notes
    assert any("commits:" in note and "bbbbbbbbb" in note for note in notes)


def test_the_command_writes_the_page_and_changes_no_record(study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    shown = run("src.report", f"folders=[{study}]", f"out={tmp_path}").stdout
    assert f"report: {tmp_path}/index.html" in shown and "Table V" in shown
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


def test_files_that_a_new_report_does_not_need_are_deleted(study, tmp_path):
    write_report([study], tmp_path, SECTIONS)
    (tmp_path / "fig8a.png").write_text("the user's own")
    write_report([study / "vanilla"], tmp_path, SECTIONS)
    left = {path.name for path in tmp_path.iterdir()}
    assert "fig8a.png" in left and "table1.csv" in left and "table5.csv" not in left
    assert not list(tmp_path.glob("fig8a-*.png"))


def test_the_report_uploads_its_figures_and_tables(study: Path, tmp_path: Path):
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
        ("folders=[tests/report]", "no finished runs below tests/report; make one with"),
        ("folder=[x]", "there is no setting folder; did you mean folders?"),
    ],
)
def test_bad_settings_are_refused_in_one_line(override, message):
    done = run("src.report", override, fails=True)
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


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
def test_a_browser_shows_every_figure_and_reports_no_error(browser, made, report_folder, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    messages, asked = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: asked.append(request.url.partition(":")[0]))
    page.goto((report_folder / "index.html").as_uri(), wait_until="load")
    assert messages == [] and asked.count("file") == 1 and set(asked) <= {"file", "data"}
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
