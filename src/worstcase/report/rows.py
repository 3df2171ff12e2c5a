"""Rows of tables: results gathered over seeds, and how they are written. Works on `results_frame`."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from pandas.api.types import is_float_dtype

from worstcase.report.frame import SETTINGS

CLEAN = "clean"
"""In the place of an attack: the accuracy as programmed."""
GIVEN = "given weights"
"""In the place of a method."""
GATHERED = ["unit", "mean", "deviation", "seeds", "each seed", "paper", "paper deviation", "scale"]
"""Columns of a table after its labels: a quantity over seeds, the published one, and how the scales differ."""
LONGEST = 200
"""Characters of a cell that are shown."""
NUMBERS = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?( [+-]?\d+(\.\d+)?(e[+-]?\d+)?)*")
"""One, or several with a space between."""


def with_clean(results: pd.DataFrame) -> pd.DataFrame:
    """The results, and after each the accuracy as programmed, as if an attack had found it."""
    clean = results.assign(
        attack=CLEAN, attacked_accuracy=results.clean_accuracy, attack_settings="{}", seconds=0.0, passes=0.0
    )
    return pd.concat([results, clean]).sort_index(kind="stable").reset_index(drop=True)


def lowest(results: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of the results that are equal in some columns, the one with the lowest accuracy."""
    return results.sort_values("attacked_accuracy", kind="stable").drop_duplicates(by).sort_index()


def differing(results: pd.DataFrame, within: list[str], settings: Sequence[str] = SETTINGS) -> pd.Series:
    """Of each result the settings, as NAME=VALUE, that not all of its group share."""
    said = pd.Series("", results.index, dtype="string")
    for _, own in results.groupby(within, sort=False, dropna=False):
        named = [
            [
                (column, name, json.dumps(value))
                for column in settings
                for name, value in json.loads(row[column]).items()
            ]
            for row in own[list(settings)].to_dict("records")
        ]
        shared = set.intersection(*map(set, named))
        said[own.index] = [
            ", ".join(
                dict.fromkeys(
                    f"{one[1].split('.')[-1]}={one[2].strip(chr(34))}" for one in row if one not in shared
                )
            )
            for row in named
        ]
    return said


def drawn_together(results: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """What can be drawn in one picture: the results of one network, data set and its settings.

    A method that was trained with several settings is named with them. Of an attack in several settings, those
    that most results have.
    """
    network = ["network", "dataset", "network_settings", "reference_settings"]
    for _, own in results.groupby(network, sort=False):
        own = own.assign(method=_joined(own.method, differing(own, ["method"], ["method_settings"])))
        count = own.groupby(["attack", "attack_settings"]).attack.transform("size")
        yield own[count == count.groupby(own.attack).transform("max")]


def gather(
    found: pd.DataFrame, labels: list[str], *, value: str = "attacked_accuracy", unit: str = "%"
) -> pd.DataFrame:
    """A row for each combination of labels and settings; of a seed, the result with the lowest accuracy counts.

    Rows of equal labels and scale whose settings differ in something else say in what. Rows of one first label
    stand together, and among these, of one scale.

    Args:
        found: results with the columns named here, `scale`, and where there are published numbers `paper` and
            `paper deviation`.
        labels: columns that name a row.
        value: the column that is gathered.
        unit: of the values; ``%`` is of fractions, which are percent where they are shown.
    """
    trained = ["scale", "method", *SETTINGS[:-1]]
    alike = [*trained, "attack", "attack_settings"]
    found = found.reset_index(drop=True)
    found["row"] = found.groupby([*(name for name in labels if name not in alike), *alike], sort=False).ngroup()
    seeds = lowest(found, ["row", "seed"]).sort_values("seed", kind="stable")
    rows = seeds.drop_duplicates("row").set_index("row").sort_index()
    values = seeds.astype({value: float}).groupby("row")[value]
    rows = rows.assign(unit=unit, mean=values.mean(), deviation=values.std(), seeds=values.size())
    rows["each seed"] = values.agg(list)
    differ = differing(rows, [labels[0], "scale", "method", "attack"])
    rows = rows.assign(first=pd.factorize(rows[labels[0]])[0]).sort_values(["first", *trained], kind="stable")
    rows["scale"] = _joined(rows.scale, differ)
    return rows.reindex(columns=[*labels, *GATHERED]).reset_index(drop=True)


def columns(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table as it is shown; what is missing is a dash."""
    shown = _texts(rows, lambda value, unit: f"{value:{'.2f' if unit == '%' else '.3g'}}", missing="-")
    unit = shown.pop("unit")
    if "mean" in shown:
        spread, papers = (" ± " + shown.pop(name) for name in ("deviation", "paper deviation"))
        measured = shown.pop("mean") + spread.where(rows.deviation.notna(), "") + " " + unit
        paper = shown.pop("paper") + papers.where(rows["paper deviation"].notna(), "")
        place = shown.columns.get_loc("seeds")
        shown.insert(place, "measured", measured.str.strip())
        shown.insert(place + 1, "paper", paper)
        shown["scale"] = shown["scale"].replace("", "the paper's")
    else:
        for name in filter(lambda name: is_float_dtype(rows[name]), rows):
            shown[name] += (" " + unit).where(rows[name].notna(), "")
    return list(shown), [[cut(cell, LONGEST) for cell in line] for line in shown.to_numpy().tolist()]


def as_csv(rows: pd.DataFrame) -> str:
    """A line for each row, numbers in full; no cell is a formula to a spreadsheet."""
    text = _texts(rows, lambda value, unit: f"{value:.10g}", missing="").map(_no_formula)
    text.columns = [_no_formula(name) for name in text]
    return text.to_csv(index=False, lineterminator="\r\n", quoting=csv.QUOTE_MINIMAL)


def cut(text: str, most: int) -> str:
    """At most so many characters of it."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _texts(rows: pd.DataFrame, number: Callable[[float, str], str], missing: str) -> pd.DataFrame:
    """Each cell as text; fractions in percent."""

    def text(value: object, unit: str) -> str:
        if isinstance(value, list):
            return " ".join(text(one, unit) for one in value)
        if value is None or pd.isna(value):
            return missing
        if isinstance(value, float):
            return number(100 * value if unit == "%" else value, unit)
        return str(value)

    texts = {name: [text(*cell) for cell in zip(rows[name], rows.unit, strict=True)] for name in rows}
    return pd.DataFrame(texts, rows.index, dtype=object)


def _joined(texts: pd.Series, more: pd.Series) -> pd.Series:
    return texts + (", " + more).where((texts != "") & (more != ""), more)


def _no_formula(cell: str) -> str:
    """With an apostrophe before what a spreadsheet would execute: records may be of others."""
    executed = cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{cell}" if executed and not NUMBERS.fullmatch(cell) else cell
