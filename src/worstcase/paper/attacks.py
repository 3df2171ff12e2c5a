"""What each attack finds: Tables I, II and IV, Figs. 1 and 7, and sampled chips."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from worstcase.evaluation.figures.monte_carlo import monte_carlo
from worstcase.evaluation.record import Record
from worstcase.paper import numbers
from worstcase.paper.bars import bars
from worstcase.paper.beside import at_papers_thg, beside_paper, published, rows_beside, rows_of
from worstcase.report.rows import CLEAN, GIVEN
from worstcase.report.section import Section

TABLE1_ATTACKS = [CLEAN, "monte_carlo", "pgd", "lwc", "flwc", "ensemble"]


def fig1(results: pd.DataFrame) -> Section | None:
    found = _table1(results)
    found = found[found.attack.isin(["monte_carlo", "lwc", "ensemble"])]
    if found.empty:
        return None
    error = found.assign(error=1 - found.attacked_accuracy, paper=1 - published(found, numbers.TABLE1))
    rows = rows_beside(error, ["network", "what"], value="error")
    caption = "The largest top-1 error found by sampling chips and by a search, at th_g 0.03."
    title = "Fig. 1: worst error by Monte Carlo and by LWC"
    return Section("fig1", title, caption, rows, found, bars("fig1", rows, "error"))


def table1(results: pd.DataFrame) -> Section | None:
    found = _table1(results)
    if found.empty:
        return None
    rows = rows_beside(found.assign(paper=published(found, numbers.TABLE1)), ["network", "what"])
    rows = pd.concat([rows, _minutes(found[found.attack != CLEAN], numbers.TABLE1_MINUTES)], ignore_index=True)
    caption = (
        "Accuracy as programmed, the lowest accuracy that each attack found at th_g 0.03, and its time. "
        "The paper samples 100,000 chips and uses a Titan XP."
    )
    return Section("table1", "Table I: what each attack finds", caption, rows, found)


def table2(results: pd.DataFrame) -> Section | None:
    found = _table1(results)
    found = found[(found.attack == "lwc") & found.parameters.map({"c_range", "lr", "epochs"}.issubset)]
    if found.empty:
        return None
    largest_c = found.parameters.map(lambda settings: max(settings["c_range"]))
    settings = {"c": largest_c, "lr": found.parameters.str["lr"], "runs": found.parameters.str["epochs"]}
    rows = []
    for name, values in settings.items():
        one = found.assign(setting=name, size=values)
        one["paper"] = published(one, numbers.TABLE2, "setting")
        rows.append(rows_beside(one, ["network", "setting"], value="size", unit=""))
    caption = (
        "Settings of LWC. Ours are in units of the bound, and each step is projected onto the box, so that one "
        "default serves every network. The paper's are in weight units and tuned for each network."
    )
    title = "Table II: settings of LWC"
    return Section("table2", title, caption, pd.concat(rows, ignore_index=True), found)


def table4(results: pd.DataFrame) -> Section | None:
    found = _table1(results)
    found = found[found.attack.isin(["lwc", "flwc"])]
    if found.attack.nunique() < 2:
        return None
    rows = rows_beside(found.assign(paper=published(found, numbers.TABLE4)), ["network", "what"])
    rows = pd.concat([rows, _minutes(found, numbers.TABLE4_MINUTES)], ignore_index=True)
    return Section(
        "table4", "Table IV: F-LWC against LWC", "Lowest accuracy found and time at th_g 0.03.", rows, found
    )


def fig7(results: pd.DataFrame) -> Section | None:
    found = at_papers_thg(results)
    found = found[(found.method == "vanilla") & (found.attack == "flwc") & found.of.notna()]
    steps = pd.Series([settings.get("steps") for settings in found.parameters], found.index, dtype=object)
    found = found.assign(steps=steps).dropna(subset="steps")
    for within in (["folder"], ["network_settings", "reference_settings"]):
        several = found[found.groupby(within).steps.transform("nunique") > 1]
        if len(several):
            break
    found = several[several.of == numbers.CONVNET] if (several.of == numbers.CONVNET).any() else several
    if found.empty:
        return None
    found = found.sort_values("steps", kind="stable")
    shown = found.assign(steps=found.steps.map(str))
    labels = ["network", "steps", "quantity"]
    rows = [
        rows_beside(shown.assign(quantity="accuracy"), labels),
        rows_beside(
            shown.assign(quantity="time" + _device(shown, ["of", "steps"])), labels, value="seconds", unit="s"
        ),
    ]
    caption = "What F-LWC finds at th_g 0.03, and its time, for different numbers of steps of size bound / steps."
    figure = _time_against_accuracy(found)
    title = "Fig. 7: F-LWC's time and precision"
    return Section("fig7", title, caption, pd.concat(rows, ignore_index=True), found, {"fig7": figure})


def _time_against_accuracy(found: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    groups = [own for _, own in found.groupby(["network_settings", "reference_settings"], sort=False)]
    for color, own in enumerate(groups):
        first = own.iloc[0]
        label = first.shown if len(groups) == 1 else ", ".join(filter(None, [first.shown, first.scale]))
        points = own.assign(percent=100 * own.attacked_accuracy).drop_duplicates(
            ["seconds", "percent"], keep="last"
        )
        axes.plot(points.seconds, points.percent, "o", color=f"C{color}", label=label)
        for point in points.itertuples():
            at = (point.seconds, point.percent)
            axes.annotate(point.steps, at, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time of the attack (s); numbers at the dots: steps")
    axes.set_ylabel("lowest accuracy found by flwc (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def sampled_chips(results: pd.DataFrame) -> Section | None:
    """Not in the paper: the accuracies of Monte Carlo's chips."""
    found = beside_paper(results[results.attack == "monte_carlo"])
    found = found[found.attack != CLEAN]
    figures: dict[str, Figure] = {}
    rows = []
    drawn = set()
    for folder, own in found.groupby("folder", sort=False):
        run, record = own.iloc[0], Record.load(Path(str(folder)))
        for attack in record.attacks:
            its = own[[settings == attack.parameters for settings in own.parameters]]
            if not (of := attack.distribution) or its.empty:
                continue
            label = {
                "network": run.shown,
                "method": run.method,
                "seed": "-" if pd.isna(run.seed) else str(run.seed),
                "th_g": f"{attack.thg:g}",
                "chips": f"{of['instances']:,} ({of['sampler']})",
            }
            rows.append(
                rows_of(its, [{**label, "quantity": name, "mean": of[name]} for name in ("mean", "minimum")])
            )
            if run.shown not in drawn:
                figures[f"monte_carlo-{len(figures) + 1}"] = monte_carlo(record, attack)
                drawn.add(run.shown)
    if not rows:
        return None
    caption = "Accuracies of chips drawn at random. The pictures show one run for each network."
    return Section("monte_carlo", "Sampled chips", caption, pd.concat(rows, ignore_index=True), found, figures)


def _table1(results: pd.DataFrame) -> pd.DataFrame:
    """Attacks on regularly trained networks of the paper at its th_g.

    If Monte Carlo ran on some of a network's trainings, only trainings with the same settings are kept.
    """
    found = at_papers_thg(results)
    regular = found.of.notna() & found.method.isin(["vanilla", GIVEN])
    found = found[regular & found.attack.isin(TABLE1_ATTACKS) & found.default]
    sampled = found[found.attack == "monte_carlo"]
    made = found.of + found.network_settings
    found = found[~found.of.isin(sampled.of) | made.isin(made[sampled.index])]
    what = ("lowest found (" + found.attack + ")").where(found.attack != CLEAN, "as programmed")
    networks, attacks = list(numbers.NETWORKS), TABLE1_ATTACKS
    order = {"of": networks.index, "attack": attacks.index}
    return found.assign(what=what).sort_values(
        ["of", "attack"], key=lambda column: column.map(order[column.name]), kind="stable"
    )


def _minutes(found: pd.DataFrame, table: dict[str, dict[str, float]]) -> pd.DataFrame:
    timed = found.assign(minutes=found.seconds / 60, paper=published(found, table))
    timed["what"] = "time (" + timed.attack + _device(timed, ["of", "attack"]) + ")"
    return rows_beside(timed, ["network", "what"], value="minutes", unit="min")


def _device(timed: pd.DataFrame, same: list[str]) -> pd.Series:
    """What computed, to be said of a time where devices differ, whose times are not averaged."""
    devices = ", " + timed.device.fillna("unknown device")
    return devices.where(devices.groupby([timed[name] for name in same]).transform("nunique") > 1, "")
