"""Rows of tables: groups the results of `results_frame` over seeds, and formats them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from pandas.api.types import is_float_dtype

from worstcase.report.frame import SETTINGS
from worstcase.text import cut

CLEAN = "clean"
"""Stands in the place of an attack for the accuracy as programmed."""
GIVEN = "given weights"
"""Stands in the place of a method."""
GATHERED = ["unit", "mean", "deviation", "seeds", "each seed", "paper", "paper deviation", "scale"]
"""Columns after a table's labels: the values over seeds, the published value, and how the scales differ."""
LONGEST = 200
"""Longest text of a cell that is shown in full, in characters."""
NUMBERS = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?( [+-]?\d+(\.\d+)?(e[+-]?\d+)?)*")
"""One number, or several separated by spaces."""


def with_clean(results: pd.DataFrame) -> pd.DataFrame:
    """The results, each followed by a row with the accuracy as programmed, as if an attack had found it."""
    clean = results.assign(
        attack=CLEAN, attacked_accuracy=results.clean_accuracy, attack_settings="{}", seconds=0.0, passes=0.0
    )
    return pd.concat([results, clean]).sort_index(kind="stable").reset_index(drop=True)


def lowest(results: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The result with the lowest accuracy for each combination of values in some columns."""
    return results.sort_values("attacked_accuracy", kind="stable").drop_duplicates(by).sort_index()


def differing(results: pd.DataFrame, within: list[str], settings: Sequence[str] = SETTINGS) -> pd.Series:
    """For each result, the settings, as NAME=VALUE, that differ within its group."""
    texts = pd.Series("", results.index, dtype="string")
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
        texts[own.index] = [
            ", ".join(
                dict.fromkeys(
                    f"{one[1].split('.')[-1]}={one[2].strip(chr(34))}" for one in row if one not in shared
                )
            )
            for row in named
        ]
    return texts


def drawn_together(results: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The groups of results that fit into one picture: one network and data set, with the same settings.

    If a method was trained with several settings, they are added to its name. If an attack ran with several
    settings, only the results with the most frequent ones are kept; of several that are equally frequent, all are,
    and the lowest of a seed counts.
    """
    network = ["network", "dataset", "network_settings", "reference_settings"]
    for _, own in results.groupby(network, sort=False):
        own = own.assign(method=_joined(own.method, differing(own, ["method"], ["method_settings"])))
        count = own.groupby(["attack", "attack_settings"]).attack.transform("size")
        yield own[count == count.groupby(own.attack).transform("max")]


def gather(
    found: pd.DataFrame, labels: list[str], *, value: str = "attacked_accuracy", unit: str = "%"
) -> pd.DataFrame:
    """Group results over seeds: a row for each combination of labels and settings. The lowest of a seed counts.

    If rows differ only in their settings, these are added to `scale`. Rows with the same first label stand
    together, and within these, rows of the same scale.

    Args:
        found: results with these columns and `scale`, and, if there are published numbers, `paper` and
            `paper deviation`.
        labels: columns that name a row.
        value: the column of the values.
        unit: of the values; with ``%`` they are fractions, and are shown in percent.
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
    """Header and body of a table as shown on the page. Missing values are dashes."""
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
    """A line for each row, numbers with ten digits. No spreadsheet takes a cell for a formula."""
    text = _texts(rows, lambda value, unit: f"{value:.10g}", missing="").map(_no_formula)
    text.columns = [_no_formula(name) for name in text]
    return text.to_csv(index=False, lineterminator="\r\n", quoting=csv.QUOTE_MINIMAL)


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
    more = more.reindex(texts.index)
    return texts + (", " + more).where((texts != "") & (more != ""), more)


def _no_formula(cell: str) -> str:
    """Put an apostrophe before what a spreadsheet would execute: a record may be from somebody else."""
    executed = cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{cell}" if executed and not NUMBERS.fullmatch(cell) else cell
