"""What training methods hold: Tables V, VI, Fig. 8, and all methods of this project."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from matplotlib.figure import Figure

from worstcase.evaluation.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.evaluation.figures.methods import Accuracies, methods
from worstcase.report import paper
from worstcase.report.rows import CLEAN, Result, Run, Settings, differing, gather, lowest, results, rounded
from worstcase.report.section import THG, Section, attack, bars, in_default_form, is_papers, section

HARDENED = ("flwc", "lwc", "ensemble")
ATTACKS = (CLEAN, *HARDENED)


def table5(runs: Sequence[Run]) -> Section | None:
    trained = ("vanilla", "va", "adversarial")
    found = [
        r for r in _hardened(runs) if r.thg == THG and r.attack != CLEAN and r.method in trained and is_papers(r)
    ]
    if {r.method for r in found} <= {"vanilla"}:
        return None

    def published(numbers: dict, r: Result) -> float | None:
        return numbers.get(r.run.network, {}).get(r.method) if r.attack == "lwc" else None

    rows = gather(
        found,
        lambda r: {"network": r.run.network_name, "method": r.method, "attack": attack(r)},
        published=lambda r: published(paper.TABLE5, r),
        published_deviation=lambda r: published(paper.TABLE5_DEVIATIONS, r),
    )
    caption = "Regular, variation-aware and adversarial training at th_g 0.03. The paper's attack is LWC."
    return section("table5", "Table V: training methods", caption, rows, found, bars(rows, "accuracy"))


def table6(runs: Sequence[Run]) -> Section | None:
    trained = ("vanilla", "trice", "atrice")
    found = [
        r
        for r in _hardened(runs)
        if r.run.network == paper.CONVNET and r.method in trained and r.thg in paper.TABLE6
    ]
    if {r.method for r in found} <= {"vanilla"}:
        return None
    rows = gather(
        sorted(found, key=lambda r: (trained.index(r.method), r.thg, ATTACKS.index(r.attack))),
        lambda r: {"method": r.method, "sigma_d": f"{10 * r.thg:g}", "attack": attack(r)},
        published=lambda r: paper.TABLE6[r.thg][r.method] if r.attack == "flwc" else None,
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
    found = [r for r in _hardened(runs) if r.run.network == of and r.method not in ("trice", "adversarial")]
    if len({r.thg for r in found}) < 2 or len({r.method for r in found}) < 2:
        return None

    def published(r: Result) -> float | None:
        if r.attack == "lwc" and r.thg == THG:
            return paper.TABLE5[of].get(r.method)
        if r.attack == "flwc" and of == paper.CONVNET and r.thg in paper.TABLE6:
            return paper.TABLE6[r.thg].get(r.method)
        return None

    rows = gather(
        sorted(found, key=lambda r: (r.method, ATTACKS.index(r.attack), r.thg)),
        lambda r: {"method": r.method, "attack": attack(r), "th_g": f"{r.thg:g}"},
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
    found = [r for r in _hardened(runs) if r.thg == THG]
    if len({r.method for r in found} - {"given weights"}) < 3:
        return None
    rows = gather(
        sorted(found, key=lambda r: (r.run.network_name, r.method, ATTACKS.index(r.attack))),
        lambda r: {"network": r.run.network_name, "method": r.method, "attack": attack(r)},
    )
    compared = [(title, table) for title, table in method_tables(runs) if len(table) > 2]
    figures = {str(number): methods(table, title) for number, (title, table) in enumerate(compared, 1)}
    caption = "Every training method at th_g 0.03. A hardened network may hide from one attack: read the lowest."
    return section("methods", "Training methods of this project", caption, rows, found, figures)


def method_tables(runs: Sequence[Run], thg: float = THG) -> Iterator[tuple[str, Accuracies]]:
    """For each network and scale its title, and the accuracies of every method under every attack at one th_g."""
    for group in _groups(r for r in _hardened(runs) if r.thg == rounded(thg)):
        table: Accuracies = {}
        for name, own in group.items():
            for r in lowest(own, lambda r: (r.attack, r.run.seed)).values():
                table.setdefault(name, {}).setdefault(r.attack, []).append(r.accuracy / 100)
        yield f"{own[0].run.shown}, th_g {thg:g}", table


def _hardened(runs: Sequence[Run]) -> list[Result]:
    """What F-LWC, LWC and the ensemble find of networks at the th_g of their training, and no attack."""
    return [r for r in results(runs) if r.as_trained and r.attack in ATTACKS and in_default_form(r)]


def _groups(found: Iterable[Result]) -> list[dict[str, list[Result]]]:
    """What can be drawn together: results of one network and scale, by method.

    A method that was trained with several settings is named with them. Of an attack in several settings, those
    that most results have.
    """
    by_setting: dict[Settings, list[Result]] = {}
    for r in found:
        by_setting.setdefault(r.run.settings, []).append(r)
    groups = []
    for own in by_setting.values():
        counts = Counter((r.attack, r.attack_settings) for r in own)
        most = {attack: count for (attack, _), count in reversed(counts.most_common())}
        variants: dict[str, set[Settings]] = {}
        for r in own:
            variants.setdefault(r.method, set()).add(r.run.method_settings)
        shared = {method: set.intersection(*map(set, settings)) for method, settings in variants.items()}
        group: dict[str, list[Result]] = {}
        for r in own:
            if counts[r.attack, r.attack_settings] == most[r.attack]:
                named = [r.method, *differing(r.run.method_settings, shared[r.method])]
                group.setdefault(", ".join(named), []).append(r)
        groups.append(group)
    return groups


def _over_thg(found: Iterable[Result]) -> dict[str, Figure]:
    """For each network and scale with a curve, and each attack, one figure."""
    figures: dict[str, Figure] = {}
    number = 0  # of those that have a curve
    for group in _groups(found):
        scale = ", ".join(next(iter(group.values()))[0].run.differences())
        drawn = {}
        for kind in HARDENED:
            records = [
                dataclasses.replace(
                    r.run.record, method=name, seed=r.run.seed, thg=r.thg, attacks=[r.found], diagnosis=None
                )
                for name, own in group.items()
                for r in lowest(own, lambda r: (r.attack, r.run.seed, r.thg)).values()
                if r.attack == kind and r.found
            ]
            if len({record.thg for record in records}) > 1:
                drawn[kind] = accuracy_over_thg(records, scale)
        number += bool(drawn)
        figures |= {kind if number == 1 else f"{kind}-{number}": figure for kind, figure in drawn.items()}
    return figures
