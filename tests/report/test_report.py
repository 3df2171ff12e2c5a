"""From records alone to the page; the records of a small study are made of what real runs leave."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import run

from worstcase.report import SECTIONS, paper, write_report
from worstcase.report.rows import Run, read_runs, results
from worstcase.results import AttackRecord, Record


@pytest.fixture(scope="session")
def explained(trained: Path) -> Record:
    """A real evaluation by LWC in its free form, with its diagnosis."""
    folder = trained / "evaluations" / "explained"
    free = ["attack=lwc", "attack.project=end", "attack.trials=3", "attack.epochs=2"]
    run("src.evaluate", f"run={trained}", *free, f"hydra.run.dir={folder}")
    return Record.load(folder)


@pytest.fixture(scope="session")
def study(trained: Path, explained: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods of two seeds at several th_g, as training runs, and the explained evaluation."""
    root = tmp_path_factory.mktemp("study")
    record = Record.load(trained)
    for method, thgs in (("vanilla", [[0.01, 0.03]]), ("va", [[0.01, 0.03]]), ("atrice", [[0.01], [0.03]])):
        for at in thgs:
            for seed in (0, 1):
                folder = root / method / f"thg{at[-1]}-seed{seed}"
                folder.mkdir(parents=True)
                record_of(record, method=method, seed=seed, thgs=at).save(folder)
    folder = root / "vanilla" / "thg0.03-seed0" / "evaluations" / "lwc"
    folder.mkdir(parents=True)
    dataclasses.replace(explained, source_run="../..", flags=["a flag"]).save(folder)
    return root


def record_of(record: Record, *, method: str, seed: int, thgs: list[float]) -> Record:
    """A record as if another method, seed and list of th_g had been run: LWC finds 0.5 + seed / 10, F-LWC less."""

    def found(attack: str, thg: float, accuracy: float, **parameters: object) -> AttackRecord:
        return dataclasses.replace(
            record.attacks[0],
            attack=attack,
            thg=thg,
            accuracy=accuracy,
            max_relative_perturbation=0.0,
            parameters={"steps": 10, **record.attacks[0].parameters, **parameters},
        )

    attacks = [found("lwc", thg, 0.5 + seed / 10) for thg in thgs] + [found("flwc", thg, 0.4) for thg in thgs]
    if method == "vanilla":
        attacks += [found("pgd", 0.03, 0.45), found("flwc", 0.03, 0.7, steps=2)]
    return dataclasses.replace(
        record,
        method=method,
        seed=seed,
        thg=thgs[-1],
        clean_accuracy=0.9,
        attacks=attacks,
        config={**record.config, "thg": thgs[-1], "method": {"_target_": method}},
        command=f"python -m src.train experiment=fig8a scale=quick method={method} thg={thgs[-1]} seed={seed}",
        git_commit="a" * 40,
        flags=[],
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="session")
def made(study: Path, folder: Path) -> dict:
    return {section.name: section for section in write_report([study], folder)}


def lines(folder, name):
    return list(csv.DictReader((folder / f"{name}.csv").open()))


def test_every_figure_and_table_that_the_records_allow_and_no_other(made, folder):
    assert set(made) == {
        *("fig1", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8a"),
        *("table1", "table2", "table3", "table4", "table5", "methods"),
    }
    files = {path.name for path in folder.iterdir()}
    assert files == {
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


def test_a_regular_network_counts_at_every_th_g_and_others_at_their_own(made, folder):
    found = {(row["method"], row["th_g"]) for row in lines(folder, "fig8a")}
    assert found == {(method, thg) for method in ("vanilla", "va", "atrice") for thg in ("0.01", "0.03")}
    record = made["fig8a"].runs[0].record
    attacked_elsewhere = dataclasses.replace(record, method="atrice", config={**record.config, "thg": 0.02})
    assert not any(r.as_trained for r in results([Run(attacked_elsewhere, attacked_elsewhere)]))


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


def test_different_commits_and_red_flags_are_noted(made):
    notes = " ".join(made["fig8a"].notes)
    assert "1 of its 9 runs raised red flags" in notes
    assert "different commits: " in notes and "aaaaaaaaa" in notes
    assert not any("commits:" in note for note in made["fig7"].notes)


def add(folder: Path, record: Record, **changes: object) -> None:
    folder.mkdir(parents=True)
    dataclasses.replace(record, **changes).save(folder)


def sections(*folders: Path) -> dict:
    runs = read_runs(folders)
    return {name: section for name, make in SECTIONS.items() if (section := make(runs))}


def labels(method: str, attack: str) -> dict[str, str]:
    return {"network": "LeNet, MNIST", "method": method, "attack": attack}


def test_settings_that_differ_are_not_pooled_as_seeds(study, trained, tmp_path):
    record = Record.load(study / "va" / "thg0.03-seed1")
    other = {**record.config, "model": {**record.config["model"], "optimizer": {"lr": 1.0}}}
    add(tmp_path / "other", record, config=other)
    rows = [row for row in sections(study, tmp_path)["table5"].rows if row.labels == labels("va", "lwc")]
    assert sorted(len(row.values) for row in rows) == [1, 2]
    assert sorted(row.scale.split(", ")[-1] for row in rows) == ["lr=0.002", "lr=1.0"]


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
        other = {**record.config, "method": {"_target_": "atrice", "alpha": 0.3}}
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


def test_the_command_writes_the_page_and_touches_no_record(study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    shown = run("src.report", f"folders=[{study}]", f"out={tmp_path}").stdout
    assert f"report: {tmp_path}/index.html" in shown and "Table V" in shown
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


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
