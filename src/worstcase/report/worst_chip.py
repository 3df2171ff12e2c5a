"""Why the worst-case LeNet fails: Table III, Figs. 3 to 6."""

from __future__ import annotations

from collections.abc import Sequence

from worstcase.evaluation.figures import diagnosis
from worstcase.report import paper
from worstcase.report.rows import Run, rounded
from worstcase.report.section import THG, Section, row


def table3(runs: Sequence[Run]) -> Section | None:
    if not (run := _explained(runs)) or not run.record.diagnosis["confusion"]["matrix"]:
        return None
    rows = []
    for found in run.record.diagnosis["confusion"]["by_class"]:
        for key, label in (("right", "right on the worst chip"), ("answers", "answers of the worst chip")):
            rows.append(row(run, {"class": str(found["class"]), "quantity": label}, found[key], unit=""))
    caption = "Counts of the picture: test images. In the paper most answers of the worst chip go to one class."
    figures = {"table3": diagnosis.confusion(run.record)}
    return Section("table3", "Table III: confusion of the worst-case LeNet", caption, rows, [run], figures)


def fig3(runs: Sequence[Run]) -> Section | None:
    searched = [
        (run, attack, trace)
        for run in reversed(runs)
        if _is_regular_lenet(run)
        for attack in run.record.attacks
        if rounded(attack.thg) == THG and len(trace := diagnosis.trace_of_c(attack)) > 1
    ]
    if not searched:
        return None
    run, attack, trace = min(searched, key=lambda one: len(one[0].differences()))
    rows = []
    for c, entry in trace.items():
        at = {"c": f"{c:.2g}"}
        rows.append(row(run, at | {"quantity": "error, clamped"}, 100 * (1 - entry["accuracy"])))
        rows.append(row(run, at | {"quantity": "L, in bounds"}, entry["magnitude"], unit=""))
    caption = "LWC in its free form: what each c leads to. Feasible is L at most 1."
    figures = {"fig3": diagnosis.search_for_c(run.record, attack)}
    return Section("fig3", "Fig. 3: error and L against c", caption, rows, [run], figures)


def fig4(runs: Sequence[Run]) -> Section | None:
    if not (run := _explained(runs)):
        return None
    rows = [
        row(run, {"chip": chip, "answers": key}, found["mean"], unit="", published=published)
        for chip, of_chip in run.record.diagnosis["confidence"].items()
        for key, found in of_chip.items()
        if found["mean"] is not None
        for published in [paper.FIG4_CONFIDENCE[key] if chip == "worst" else None]
    ]
    caption = "Mean of the largest softmax output over right and over wrong answers; the picture shows all."
    figures = {"fig4": diagnosis.confidence(run.record)}
    return Section("fig4", "Fig. 4: confidence of the worst-case LeNet", caption, rows, [run], figures)


def fig5(runs: Sequence[Run]) -> Section | None:
    if not (run := _explained(runs)):
        return None
    found = run.record.diagnosis["perturbation"]
    ends = 100 * (found["unmoved"] + found["at_bound"])
    rows = [
        row(run, {"weights": "at 0 or at the bound"}, ends, published=paper.FIG5_AT_AN_END),
        row(run, {"weights": "at 0"}, 100 * found["unmoved"]),
        row(run, {"weights": "at the bound"}, 100 * found["at_bound"]),
    ]
    caption = "Share of the weights of the worst-case LeNet, each within 1 % of the bound."
    figures = {"fig5": diagnosis.perturbation(run.record)}
    return Section("fig5", "Fig. 5: how far weights move", caption, rows, [run], figures)


def fig6(runs: Sequence[Run]) -> Section | None:
    if not (run := _explained(runs)):
        return None
    rows = [
        row(run, {"layer": layer["array"], "weights": f"{layer['weights']:,}"}, 100 * (1 - layer["unmoved"]))
        for layer in run.record.diagnosis["layers"]
    ]
    caption = "Share of each layer's weights that the worst-case LeNet moves."
    figures = {"fig6": diagnosis.layers(run.record)}
    return Section("fig6", "Fig. 6: perturbed weights by layer", caption, rows, [run], figures)


def _explained(runs: Sequence[Run]) -> Run | None:
    """Of a regular LeNet, the explained worst chip that answers fewest right, at the scale nearest the paper's."""
    explained = [
        run
        for run in runs
        if run.record.diagnosis and _is_regular_lenet(run) and rounded(run.record.diagnosis["thg"]) == THG
    ]
    return min(explained, key=lambda run: (len(run.differences()), run.record.diagnosis["accuracy"]), default=None)


def _is_regular_lenet(run: Run) -> bool:
    return run.network == paper.LENET and run.record.method == "vanilla"
