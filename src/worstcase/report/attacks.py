"""What each attack finds: Tables I, II, IV, Figs. 1 and 7, and what sampled chips say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from worstcase.evaluation.figures.monte_carlo import monte_carlo
from worstcase.report import paper
from worstcase.report.rows import CLEAN, Result, Row, Run, gather
from worstcase.report.section import THG, Section, at, bars, in_default_form, is_papers, row, section


def fig1(runs: Sequence[Run]) -> Section | None:
    found = [r for r in _table1(runs) if r.attack in ("monte_carlo", "lwc", "ensemble")]
    rows = gather(
        found,
        _found,
        value=lambda r: 100 - r.accuracy,
        published=lambda r: _less(100, paper.TABLE1.get(r.run.network, {}).get(r.attack)),
    )
    caption = "The largest top-1 error that sampled chips and that a search show, th_g 0.03."
    return section(
        "fig1", "Fig. 1: worst error by Monte Carlo and by LWC", caption, rows, found, bars(rows, "error")
    )


def table1(runs: Sequence[Run]) -> Section | None:
    found = _table1(runs)
    rows = gather(found, _found, published=lambda r: paper.TABLE1.get(r.run.network, {}).get(r.attack))
    rows += gather(
        [r for r in found if r.attack != CLEAN],
        _time,
        value=lambda r: r.minutes,
        unit="min",
        published=lambda r: paper.TABLE1_MINUTES.get(r.run.network, {}).get(r.attack),
    )
    caption = (
        "Accuracy as programmed, the lowest that each attack found at th_g 0.03, and its time. "
        "The paper: 100,000 sampled chips, a Titan XP."
    )
    return section("table1", "Table I: what each attack finds", caption, rows, found)


def table2(runs: Sequence[Run]) -> Section | None:
    found = [r for r in _table1(runs) if r.attack == "lwc" and {"c_range", "lr", "epochs"} <= r.parameters.keys()]
    rows = [*_setting(found, "c", _largest_c), *_setting(found, "lr", lambda r: r.parameters["lr"])]
    rows += _setting(found, "runs", lambda r: r.parameters["epochs"])
    caption = (
        "LWC's settings. Ours are in units of the bound, and each step is projected onto it, so that one default "
        "serves every network; the paper's are tuned for each and in weight units."
    )
    return section("table2", "Table II: settings of LWC", caption, rows, found)


def table4(runs: Sequence[Run]) -> Section | None:
    found = [r for r in _table1(runs) if r.attack in ("lwc", "flwc")]
    if {r.attack for r in found} != {"lwc", "flwc"}:
        return None
    rows = gather(found, _found, published=lambda r: paper.TABLE4.get(r.run.network, {}).get(r.attack))
    rows += gather(
        found,
        _time,
        value=lambda r: r.minutes,
        unit="min",
        published=lambda r: paper.TABLE4_MINUTES.get(r.run.network, {}).get(r.attack),
    )
    return section("table4", "Table IV: F-LWC against LWC", "At th_g 0.03.", rows, found)


def fig7(runs: Sequence[Run]) -> Section | None:
    found = [r for r in at(runs, THG) if r.method == "vanilla" and r.attack == "flwc" and is_papers(r)]
    found = [r for r in found if "steps" in r.parameters]

    def in_several_steps(within: Callable[[Result], object]) -> list[Result]:
        steps: dict[object, set[int]] = {}
        for r in found:
            steps.setdefault(within(r), set()).add(r.parameters["steps"])
        return [r for r in found if len(steps[within(r)]) > 1]

    found = in_several_steps(lambda r: id(r.run)) or in_several_steps(lambda r: r.run.settings)
    found = [r for r in found if r.run.network == paper.CONVNET] or found
    if not found:
        return None
    found.sort(key=lambda r: r.parameters["steps"])

    def labels(quantity: str) -> Callable[[Result], dict[str, str]]:
        return lambda r: {"network": r.run.network_name, "steps": str(r.parameters["steps"]), "quantity": quantity}

    rows = gather(found, labels("accuracy"))
    rows += gather(found, labels("time"), value=lambda r: 60 * r.minutes, unit="s")
    caption = "Lowest found by F-LWC at th_g 0.03 in fewer and larger steps, each the bound / steps, and its time."
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn = dict.fromkeys(r.run.settings for r in found)
    for color, settings in enumerate(drawn):
        own = [r for r in found if r.run.settings == settings]
        points = {(60 * r.minutes, r.accuracy): r.parameters["steps"] for r in own}
        label = own[0].run.network_name if len(drawn) == 1 else own[0].run.shown
        axes.plot(*zip(*points, strict=True), "o", color=f"C{color}", label=label)
        for point, number in points.items():
            axes.annotate(number, point, xytext=(4, 4), textcoords="offset points", fontsize="small")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds of the attack (beside a dot: its steps)")
    axes.set_ylabel("lowest found (flwc), accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return section("fig7", "Fig. 7: F-LWC's time and precision", caption, rows, found, {"": figure})


def sampled_chips(runs: Sequence[Run]) -> Section | None:
    """Not in the paper: what Monte Carlo can and cannot say."""
    figures: dict[str, Figure] = {}
    rows: list[Row] = []
    used: list[Run] = []
    for run in runs:
        for attack in run.record.attacks:
            if (of := attack.distribution) and of["accuracies"]:
                label = {
                    "network": run.network_name,
                    "method": str(run.record.method),
                    "seed": str(run.seed),
                    "th_g": f"{attack.thg:g}",
                    "chips": f"{of['instances']:,} ({of['sampler']})",
                }
                rows.append(row(run, label | {"quantity": "mean"}, 100 * of["mean"]))
                rows.append(row(run, label | {"quantity": "minimum"}, 100 * of["minimum"]))
                if not any(run.network == other.network for other in used):
                    figures[f"monte_carlo-{len(figures) + 1}"] = monte_carlo(run.record, attack)
                used.append(run)
    caption = "Accuracies of chips drawn at random; the picture is of one run for each network."
    return Section("monte_carlo", "Sampled chips", caption, rows, used, figures) if rows else None


def _table1(runs: Sequence[Run]) -> list[Result]:
    """Attacks on regular networks of the paper at its th_g; where some of one were sampled, on these alone."""
    order = (CLEAN, "monte_carlo", "pgd", "lwc", "flwc", "ensemble")
    networks = list(paper.NETWORKS)
    found = [
        r
        for r in at(runs, THG)
        if is_papers(r) and r.method in ("vanilla", "given weights") and r.attack in order and in_default_form(r)
    ]
    sampled = {(r.run.network, r.run.network_settings) for r in found if r.attack == "monte_carlo"}
    networks_sampled = {network for network, _ in sampled}
    found = [
        r
        for r in found
        if r.run.network not in networks_sampled or (r.run.network, r.run.network_settings) in sampled
    ]
    return sorted(found, key=lambda r: (networks.index(r.run.network), order.index(r.attack)))


def _found(result: Result) -> dict[str, str]:
    what = "as programmed" if result.attack == CLEAN else f"lowest found ({result.attack})"
    return {"network": result.run.network_name, "what": what}


def _time(result: Result) -> dict[str, str]:
    return {"network": result.run.network_name, "what": f"time ({result.attack})"}


def _setting(found: list[Result], name: str, value: Callable[[Result], float]) -> list[Row]:
    return gather(
        found,
        lambda r: {"network": r.run.network_name, "setting": name},
        value=value,
        unit="",
        published=lambda r: paper.TABLE2.get(r.run.network, {}).get(name),
    )


def _largest_c(result: Result) -> float:
    return float(max(result.parameters["c_range"]))


def _less(whole: float, part: float | None) -> float | None:
    return None if part is None else whole - part
