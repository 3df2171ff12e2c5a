"""What training methods hold: Tables V, VI, Fig. 8, and all methods of this project."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from worstcase.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.figures.methods import accuracies_by_method, methods
from worstcase.report import paper
from worstcase.report.rows import CLEAN, Result, Run, gather, results
from worstcase.report.section import HARDENED, THG, Section, at, bars, is_papers, network, section


def table5(runs: Sequence[Run]) -> Section | None:
    trained = ("vanilla", "va", "adversarial")
    found = [r for r in at(runs, THG) if r.attack in HARDENED and r.method in trained and is_papers(r)]
    if {r.method for r in found} <= {"vanilla"}:
        return None

    def published(numbers: dict, r: Result) -> float | None:
        return numbers.get(r.run.network, {}).get(r.method) if r.attack == "lwc" else None

    rows = gather(
        found,
        lambda r: {"network": network(r), "method": r.method, "lowest found by": r.attack},
        published=lambda r: published(paper.TABLE5, r),
        published_deviation=lambda r: published(paper.TABLE5_DEVIATIONS, r),
    )
    caption = "Regular, variation-aware and adversarial training at th_g 0.03. The paper's attack is LWC."
    return section("table5", "Table V: training methods", caption, rows, found, bars(rows, "accuracy"))


def table6(runs: Sequence[Run]) -> Section | None:
    trained = ("vanilla", "trice", "atrice")
    found = [
        r
        for r in results(runs)
        if r.run.network == paper.CONVNET
        and r.method in trained
        and r.as_trained
        and r.attack in (CLEAN, *HARDENED)
        and any(abs(r.thg - thg) < 1e-9 for thg in paper.TABLE6)
    ]
    if {r.method for r in found} <= {"vanilla"}:
        return None
    rows = gather(
        sorted(found, key=lambda r: (trained.index(r.method), r.thg, (CLEAN, *HARDENED).index(r.attack))),
        lambda r: {"method": r.method, "sigma_d": f"{10 * r.thg:g}", "lowest found by": r.attack},
        published=lambda r: paper.TABLE6[round(r.thg, 4)][r.method] if r.attack == "flwc" else None,
    )
    caption = (
        "ConvNet on CIFAR-10 at th_g = sigma_d / 10. The paper's column stands beside F-LWC: its 1.51 at 0.3 is "
        "F-LWC's number of Table IV."
    )
    return section("table6", "Table VI: TRICE and A-TRICE", caption, rows, found, _over_thg(found))


def fig8a(runs: Sequence[Run]) -> Section | None:
    return _fig8("fig8a", paper.LENET, runs)


def fig8b(runs: Sequence[Run]) -> Section | None:
    return _fig8("fig8b", paper.CONVNET, runs)


def fig8c(runs: Sequence[Run]) -> Section | None:
    return _fig8("fig8c", paper.RESNET18, runs)


def _fig8(name: str, of: paper.Network, runs: Sequence[Run]) -> Section | None:
    found = [
        r
        for r in results(runs)
        if r.run.network == of
        and r.as_trained
        and r.attack in (CLEAN, *HARDENED)
        and r.method not in ("trice", "adversarial")
    ]
    if len({r.thg for r in found}) < 2 or len({r.method for r in found}) < 2:
        return None

    def published(r: Result) -> float | None:
        if r.attack == "lwc" and r.thg == THG:
            return paper.TABLE5[of].get(r.method)
        if r.attack == "flwc" and of == paper.CONVNET and round(r.thg, 4) in paper.TABLE6:
            return paper.TABLE6[round(r.thg, 4)].get(r.method)
        return None

    rows = gather(
        sorted(found, key=lambda r: (r.method, (CLEAN, *HARDENED).index(r.attack), r.thg)),
        lambda r: {"method": r.method, "lowest found by": r.attack, "th_g": f"{r.thg:g}"},
        published=published,
    )
    caption = (
        "Accuracy against the write-verify bound. The paper prints no numbers with this figure; its column has "
        "those of Tables V and VI at the same point."
    )
    title = f"Fig. {name[3:].replace('8', '8(')}): {paper.NETWORKS[of]}"
    return section(name, title, caption, rows, found, _over_thg(found))


def compared_methods(runs: Sequence[Run]) -> Section | None:
    """Not in the paper: all methods under all attacks at th_g 0.03."""
    found = [r for r in at(runs, THG) if r.attack in (CLEAN, *HARDENED)]
    if len({r.method for r in found} - {"given weights"}) < 3:
        return None
    rows = gather(
        sorted(found, key=lambda r: (network(r), r.method, (CLEAN, *HARDENED).index(r.attack))),
        lambda r: {"network": network(r), "method": r.method, "lowest found by": r.attack},
    )
    figures: dict[str, Figure] = {}
    for own in _of_one_setting(found):
        chosen = _records(own)
        if len({r.method for r in chosen}) > 2:
            title = f"{network(own[0])}, th_g {THG:g}"
            figures[str(len(figures) + 1)] = methods(accuracies_by_method(chosen), title)
    caption = "Every training method at th_g 0.03. A hardened network may hide from one attack: read the lowest."
    return section("methods", "Training methods of this project", caption, rows, found, figures)


def _of_one_setting(found: Iterable[Result]) -> list[list[Result]]:
    groups: dict[str, list[Result]] = {}
    for r in found:
        groups.setdefault(r.run.settings, []).append(r)
    return list(groups.values())


def _records(found: Iterable[Result]) -> list:
    """The results' records, with these attacks alone; as programmed comes with its record."""
    kept: dict[int, tuple[Run, list]] = {}
    for r in found:
        if r.attack != CLEAN:
            _, attacks = kept.setdefault(id(r.run), (r.run, []))
            attacks += [a for a in r.run.record.attacks if (a.attack, a.thg) == (r.attack, r.thg)]
    return [
        dataclasses.replace(run.record, attacks=attacks, thg=max(a.thg for a in attacks))
        for run, attacks in kept.values()
    ]


def _over_thg(found: Iterable[Result]) -> dict[str, Figure]:
    """For each setting and attack one figure; of each method, seed and th_g the lowest that the attack found."""
    figures = {}
    for number, own in enumerate(_of_one_setting(found), 1):
        for attack in HARDENED:
            lowest: dict[tuple, Result] = {}
            for r in own:
                key = (r.method, r.run.record.seed, r.thg)
                if r.attack == attack and (key not in lowest or r.accuracy < lowest[key].accuracy):
                    lowest[key] = r
            if len({thg for _, _, thg in lowest}) > 1:
                name = attack if number == 1 else f"{attack}-{number}"
                figures[name] = accuracy_over_thg([r for one in lowest.values() for r in _records([one])])
    return figures
