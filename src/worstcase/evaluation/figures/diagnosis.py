"""Figures of why the worst chip fails: Table III, Figs. 3 to 6 of the paper, and selective write-verify."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure

from worstcase.evaluation.record import AttackRecord, Record

CLEAN, WORST, PART = "C0", "C3", "C1"
LETTERS = 10.5
"""Of a title, in an inch of its figure's width."""
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}


def diagnosis_figures(record: Record) -> dict[str, Figure]:
    """All figures that a record has the data for, by file name."""
    figures: dict[str, Figure] = {}
    diagnosis = record.diagnosis
    if diagnosis:
        if diagnosis["confusion"]["matrix"]:
            figures["confusion"] = confusion(record)
        figures["confidence"] = confidence(record)
        figures["perturbation"] = perturbation(record)
        figures["layers"] = layers(record)
        if diagnosis["selective_write_verify"]:
            figures["selective_write_verify"] = selective_write_verify(record)
    for found in record.attacks:
        if len(trace_of_c(found)) > 1:
            figures[numbered(f"search_for_c-thg{found.thg:g}", figures)] = search_for_c(record, found)
    return figures


def numbered(name: str, figures: dict[str, Figure]) -> str:
    """A name that no figure has yet."""
    again = sum(other == name or other.startswith(f"{name}-") for other in figures)
    return f"{name}-{again + 1}" if again else name


def confusion(record: Record) -> Figure:
    """The answers of the worst chip (Table III): counts, coloured by their share of the true class."""
    matrix = record.diagnosis["confusion"]["matrix"]
    classes = range(len(matrix))
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in matrix]
    size = 2.4 + 0.42 * len(matrix)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Reds", vmin=0, vmax=100)
    for i in classes:
        for j in classes:
            color = "white" if shares[i][j] > 60 else "black" if matrix[i][j] else "0.7"
            axes.text(j, i, str(matrix[i][j]), ha="center", va="center", fontsize="small", color=color)
    axes.set_xticks(classes)
    axes.set_yticks(classes)
    axes.set_xlabel("answer of the worst chip (class)")
    axes.set_ylabel("true class")
    figure.colorbar(image, label="share of the true class (%)", shrink=0.8)
    _title(figure, record)
    return figure


def confidence(record: Record) -> Figure:
    """Confidence of right and wrong answers (Fig. 4), of the clean and of the worst chip."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    for axes, chip, title in zip(
        figure.subplots(2, sharex=True), ("clean", "worst"), ("without perturbation", "worst chip"), strict=True
    ):
        for key, color in (("right", CLEAN), ("wrong", WORST)):
            answers = record.diagnosis["confidence"][chip][key]
            mean = "" if answers["mean"] is None else f", mean {answers['mean']:.2f}"
            shares = [100 * count / max(1, answers["answers"]) for count in answers["counts"]]
            label = f"{answers['answers']:,} {key}{mean}"
            axes.stairs(shares, _edges(shares), fill=True, color=color, alpha=0.45, label=label)
            if answers["mean"] is not None:
                axes.axvline(answers["mean"], color=color, ls="--", lw=1.2)
        axes.set_ylabel("share of the right or\nwrong answers (%)")
        axes.set_xlim(0, 1)
        axes.legend(title=title, loc="best", fontsize="small", title_fontsize="small")
        axes.grid(alpha=0.3)
    axes.set_xlabel("confidence (largest softmax output, 0..1)")
    _title(figure, record)
    return figure


def perturbation(record: Record) -> Figure:
    """How far the weights of the worst chip deviate (Fig. 5), in units of the bound."""
    found = record.diagnosis["perturbation"]
    shares = [100 * count / found["weights"] for count in found["counts"]]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(shares, _edges(shares), fill=True, color=WORST, alpha=0.7)
    axes.set_xlim(0, 1)
    axes.set_xlabel("absolute perturbation (in units of the bound)")
    axes.set_ylabel("share of the weights (%)")
    axes.grid(alpha=0.3)
    axes.set_title(
        f"{found['weights']:,} weights: {found['unmoved']:.1%} at 0 and {found['at_bound']:.1%} at the bound "
        f"(within 1 % of it), mean {found['mean']:.2f}",
        fontsize="small",
    )
    _title(figure, record)
    return figure


def layers(record: Record) -> Figure:
    """Weights moved by layer (Fig. 6); with a full diagnosis, also the accuracy when only that layer moves."""
    found = record.diagnosis["layers"]
    alone = "lowest_alone" in found[0]
    names = [f"{layer['array'].removesuffix('.weight')[-60:]} ({layer['weights']:,})" for layer in found]
    places = range(len(found))
    figure = Figure(figsize=(10.4 if alone else 6.4, 2.2 + 0.5 * len(found)), layout="constrained")
    panels = figure.subplots(1, 2 if alone else 1, sharey=True, squeeze=False)[0]
    panels[0].barh(places, [100 * (1 - layer["unmoved"]) for layer in found], color="0.75", label="moved")
    panels[0].barh(places, [100 * layer["at_bound"] for layer in found], 0.4, color=WORST, label="at the bound")
    panels[0].set_xlabel("share of the layer's weights (%)")
    panels[0].set_yticks(places, names, parse_math=False)
    panels[0].set_ylabel("layer (number of weights)")
    panels[0].invert_yaxis()
    if alone:
        searched = _searched(record)
        for side, key, color, label in (
            (-0.2, "accuracy_of_its_part", PART, "only its part of the worst chip"),
            (0.2, "lowest_alone", WORST, f"lowest found if only it moves ({searched})"),
        ):
            bars = panels[1].barh(
                [place + side for place in places],
                [100 * layer[key] for layer in found],
                0.4,
                color=color,
                label=label,
            )
            panels[1].bar_label(bars, fmt="%.1f", padding=2, fontsize="small", bbox=BOX)
        _references(panels[1].axvline, record)
        panels[1].set_xlabel(f"accuracy on the {record.reference} split (%)")
        panels[1].set_xlim(0, 112)
    else:
        panels[0].set_xlim(0, 102)
    for axes in panels:
        axes.grid(axis="x", alpha=0.3)
        axes.margins(y=0.03)
    figure.legend(loc="outside lower center", ncols=3 if alone else 2, fontsize="small")
    _title(figure, record)
    return figure


def selective_write_verify(record: Record) -> Figure:
    """Accuracy if only the most important weights may move, and if all others may while these are exact."""
    points = record.diagnosis["selective_write_verify"]
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    shares = [100 * point["share"] for point in points]
    for key, color, marker, label in (
        ("all_others_move", CLEAN, "o", "all others may move, these are exact"),
        ("only_these_move", WORST, "s", "only these may move"),
    ):
        axes.plot(shares, [100 * point[key] for point in points], color=color, marker=marker, label=label)
    _references(axes.axhline, record)
    axes.set_xscale("log")
    axes.set_xticks(
        shares, [f"{share:g}\n{point['weights']:,}" for share, point in zip(shares, points, strict=True)]
    )
    axes.minorticks_off()
    axes.set_ylim(-2, 102)
    axes.set_xlabel("most important weights (% of all; number)")
    axes.set_ylabel(f"lowest accuracy found ({_searched(record)})\non the {record.reference} split (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    _title(figure, record)
    return figure


def search_for_c(record: Record, found: AttackRecord) -> Figure:
    """The error and the largest deviation that each c of an LWC search led to (Fig. 3).

    Raises:
        ValueError: the attack's history has fewer than two values of c.
    """
    trace = trace_of_c(found)
    if len(trace) < 2:
        raise ValueError(
            f"{found.attack} tried {len(trace)} values of c: the figure needs two or more (LWC's project=end)"
        )
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    of_error, of_magnitude = figure.subplots(2, sharex=True)
    of_error.plot(trace.keys(), [100 * (1 - entry["accuracy"]) for entry in trace.values()], "o-", color=WORST)
    of_error.set_ylabel(f"error on the {record.reference} split,\nclamped to the bound (%)")
    of_error.set_ylim(-2, 102)
    of_magnitude.plot(trace.keys(), [entry["magnitude"] for entry in trace.values()], "o-", color=CLEAN)
    of_magnitude.axhline(1, color="0.3", ls="--", lw=1.2, label="the bound, th_g")
    of_magnitude.set_ylabel("L, largest deviation before\nclamping (in units of the bound)")
    of_magnitude.set_ylim(bottom=0)
    of_magnitude.set_xscale("log")
    of_magnitude.set_xlabel("c, weight of the objective against L")
    of_magnitude.legend(fontsize="small")
    for axes in (of_error, of_magnitude):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{_network(record)}, th_g {found.thg:g}: search for c ({found.attack})", fontsize="medium")
    return figure


def trace_of_c(found: AttackRecord) -> dict[float, dict[str, float]]:
    """The last entry of each c, in rising order of c."""
    trace = {entry["c"]: entry for entry in found.history if "c" in entry}
    return dict(sorted(trace.items()))


def _references(line: Callable[..., Any], record: Record) -> None:
    diagnosis = record.diagnosis
    line(100 * diagnosis["clean_accuracy"], color="0.3", ls=":", lw=1.4, label="without perturbation")
    line(100 * diagnosis["accuracy"], color="0.3", ls="--", lw=1.2, label="worst chip")


def _searched(record: Record) -> str:
    return f"ensemble, {record.diagnosis['budget']:g} passes"


def _edges(counts: list[float]) -> list[float]:
    return [i / len(counts) for i in range(len(counts) + 1)]


def _title(figure: Figure, record: Record) -> None:
    """Name the chip in the title: the lowest that the record's attacks found at the diagnosis's th_g."""
    diagnosis = record.diagnosis
    found = [attack for attack in record.attacks if attack.thg == diagnosis["thg"]]
    name = min(found, key=lambda attack: attack.accuracy).attack
    title = (
        f"{_network(record)}, th_g {diagnosis['thg']:g}: "
        f"worst chip found ({name}), accuracy {diagnosis['accuracy']:.2%}"
    )
    figure.suptitle(fill(title, int(LETTERS * figure.get_figwidth())), fontsize="medium")


def _network(record: Record) -> str:
    return record.model + (f" ({record.method})" if record.method else "") + f" on {record.dataset}"
