"""Why the worst-case LeNet fails: Table III, Figs. 3 to 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from worstcase.evaluation.figures import diagnosis
from worstcase.evaluation.record import Record
from worstcase.paper import numbers
from worstcase.paper.beside import THG, beside_paper, rows_of
from worstcase.report.rows import CLEAN
from worstcase.report.section import Section


def table3(results: pd.DataFrame) -> Section | None:
    if not (explained := _explained(results)) or not explained[1].diagnosis["confusion"]["matrix"]:
        return None
    found, record = explained
    rows = [
        {"class": str(of["class"]), "quantity": label, "mean": of[key], "unit": ""}
        for of in record.diagnosis["confusion"]["by_class"]
        for key, label in (("right", "right on the worst chip"), ("answers", "answers of the worst chip"))
    ]
    caption = "The picture counts test images. In the paper, one class gets most answers of the worst chip."
    title = "Table III: confusion of the worst-case LeNet"
    return Section("table3", title, caption, rows_of(found, rows), found, {"table3": diagnosis.confusion(record)})


def fig3(results: pd.DataFrame) -> Section | None:
    found = _regular_lenets(results)[::-1].sort_values("differences", kind="stable")  # newest first among equals
    found = found[found.parameters.str["project"] == "end"]
    searched = (
        (run, record, attack, trace)
        for run in found.folder.unique()
        for record in [Record.load(Path(run))]
        for attack in record.attacks
        if round(attack.thg, 9) == THG and len(trace := diagnosis.trace_of_c(attack)) > 1
    )
    if not (first := next(searched, None)):
        return None
    run, record, attack, trace = first
    found = found[found.folder == run]
    rows: list[dict[str, Any]] = []
    for c, entry in trace.items():
        rows.append({"c": f"{c:.2g}", "quantity": "error after clamping", "mean": 1 - entry["accuracy"]})
        rows.append(
            {"c": f"{c:.2g}", "quantity": "L, in units of the bound", "mean": entry["magnitude"], "unit": ""}
        )
    caption = "LWC in its free form: error and largest deviation L for each c. L is feasible up to 1."
    figures = {"fig3": diagnosis.search_for_c(record, attack)}
    return Section("fig3", "Fig. 3: error and L against c", caption, rows_of(found, rows), found, figures)


def fig4(results: pd.DataFrame) -> Section | None:
    if not (explained := _explained(results)):
        return None
    found, record = explained
    rows = [
        {"chip": chip, "answers": key, "mean": of["mean"], "unit": "", "paper": paper}
        for chip, of_chip in record.diagnosis["confidence"].items()
        for key, of in of_chip.items()
        if of["mean"] is not None
        for paper in [numbers.FIG4_CONFIDENCE[key] if chip == "worst" else None]
    ]
    caption = "Mean of the largest softmax output over right and over wrong answers. The picture shows histograms."
    title = "Fig. 4: confidence of the worst-case LeNet"
    return Section("fig4", title, caption, rows_of(found, rows), found, {"fig4": diagnosis.confidence(record)})


def fig5(results: pd.DataFrame) -> Section | None:
    if not (explained := _explained(results)):
        return None
    found, record = explained
    of = record.diagnosis["perturbation"]
    ends = of["unmoved"] + of["at_bound"]
    rows = [
        {"weights": "at 0 or at the bound", "mean": ends, "paper": numbers.FIG5_AT_AN_END},
        {"weights": "at 0", "mean": of["unmoved"]},
        {"weights": "at the bound", "mean": of["at_bound"]},
    ]
    caption = "Share of the worst-case LeNet's weights that are at 0 or at the bound, to within 1 % of the bound."
    title = "Fig. 5: how far weights move"
    return Section("fig5", title, caption, rows_of(found, rows), found, {"fig5": diagnosis.perturbation(record)})


def fig6(results: pd.DataFrame) -> Section | None:
    if not (explained := _explained(results)):
        return None
    found, record = explained
    rows = [
        {"layer": layer["array"], "weights": f"{layer['weights']:,}", "mean": 1 - layer["unmoved"]}
        for layer in record.diagnosis["layers"]
    ]
    caption = "Share of each layer's weights that the worst-case LeNet moves."
    title = "Fig. 6: perturbed weights by layer"
    return Section("fig6", title, caption, rows_of(found, rows), found, {"fig6": diagnosis.layers(record)})


def _explained(results: pd.DataFrame) -> tuple[pd.DataFrame, Record] | None:
    """The regular LeNet with a diagnosis: first the nearest to the paper's scale, then the lowest accuracy."""
    found = _regular_lenets(results)
    found = found[found.explained].sort_values(["differences", "attacked_accuracy"], kind="stable").head(1)
    return None if found.empty else (found, Record.load(Path(found.folder.iloc[0])))


def _regular_lenets(results: pd.DataFrame) -> pd.DataFrame:
    """What attacks found on regular LeNets at the paper's th_g."""
    found = beside_paper(results[(results.thg == THG) & (results.method == "vanilla").fillna(False)])
    return found[(found.of == numbers.LENET).fillna(False) & (found.attack != CLEAN)]
