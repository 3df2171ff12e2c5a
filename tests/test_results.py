"""Results in the documents are those of the records beside them."""

import re

import pandas as pd
import pytest
from commands import REPOSITORY, run

from worstcase import results_frame
from worstcase.paper import SECTIONS
from worstcase.report.rows import as_csv

DOCS = REPOSITORY / "docs"
PUBLISHED = sorted(folder.name for folder in (DOCS / "records").iterdir() if folder.name in SECTIONS)
ALSO = {"table6": ["fig8b"]}
"""Folders with records that a table shares with another."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_is_what_the_report_makes_of_the_records(name):
    section = SECTIONS[name](results_frame([DOCS / "records" / folder for folder in (name, *ALSO.get(name, []))]))
    assert as_csv(section.rows) == (DOCS / f"{name}.csv").read_bytes().decode()


def test_the_other_seed_of_table6_is_what_the_report_makes_of_its_records_and_of_fig8b():
    rows = as_csv(SECTIONS["table6"](results_frame([DOCS / "records" / "table6_seed0"])).rows).splitlines()
    of_fig8b = (DOCS / "fig8b_seed0.csv").read_text().splitlines()
    for method, attack, thg, rest in (row.split(",", 3) for row in of_fig8b):
        if method in ("vanilla", "atrice"):
            rows.append(f"{method},{10 * float(thg):g},{attack},{rest}")
    assert sorted(rows) == sorted((DOCS / "table6_seed0.csv").read_text().splitlines())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_page_shows_the_table(name):
    """In each cell what this seed has, and what the one before."""
    seeds = [DOCS / f"{name}.csv", *DOCS.glob(f"{name}_seed0.csv")]
    where = ["method", "attack", "sigma_d" if name == "table6" else "th_g"]
    tables = [pd.read_csv(file).set_index(where)["mean"] for file in seeds]
    page = (DOCS / "results.md").read_text()
    for (method, attack), row in tables[0].groupby(level=["method", "attack"]):
        cells = [", ".join(f"{table[at]:.1f}" for table in tables) for at in row.index]
        assert f"| `{method}` | {attack} | {' | '.join(cells)} |" in page.replace("| - |", "|")


def test_the_page_shows_the_records_of_convnet():
    page = (DOCS / "training.md").read_text()
    for (method, seed), runs in results_frame(DOCS / "records" / "convnet").groupby(["method", "seed"]):
        by_thg = 100 * runs.set_index("thg")[["clean_accuracy", "attacked_accuracy"]].reindex([0.01, 0.03])
        numbers = ["-" if pd.isna(one) else f"{one:.2f}" for one in by_thg.astype(float).to_numpy().flatten()]
        row = rf"\| `{method}` \| {seed} \| " if seed else rf"\| `{method}`[^|]* \| \d+ \| "
        assert re.search(row + re.escape(" | ".join(numbers)), page)


@pytest.mark.parametrize(("folder", "named"), [("convnet_60", "60 epochs"), ("convnet_kl", "`loss=kl`")])
def test_the_page_shows_the_records_of_convnet_with_twice_the_passes(folder, named):
    page = (DOCS / "training.md").read_text()
    frame = results_frame(DOCS / "records" / folder).sort_values("seed")
    rows = [
        f"| `universal_at_deep`, {named} | {one.seed} | - | - "
        f"| {100 * one.clean_accuracy:.2f} | {100 * one.attacked_accuracy:.2f} |\n"
        for one in frame.itertuples()
    ]
    if len(rows) > 2:
        both = 100 * frame[["clean_accuracy", "attacked_accuracy"]]
        numbers = " | ".join(f"{m:.2f} ± {s:.2f}" for m, s in zip(both.mean(), both.std(), strict=True))
        rows.append(f"| | mean | - | - | {numbers} |\n")
        assert folder != "convnet_60" or f"| 0.03 | {numbers} |" in (DOCS.parent / "README.md").read_text()
    assert "".join(rows) in page


def test_the_page_shows_the_records_of_lenet(tmp_path):
    page = (DOCS / "results.md").read_text()
    picture = tmp_path / "methods.png"
    table = run("examples.compare_methods", DOCS / "records" / "lenet", picture).stdout
    rows = table.splitlines()[2:]
    assert len(rows) == 6 and all(row in page for row in rows) and picture.exists()


def test_records_name_no_folder_of_a_machine():
    for record in (DOCS / "records").rglob("results.json"):
        assert '"/' not in record.read_text()
