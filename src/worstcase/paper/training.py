"""Training methods compared: Tables V and VI, Fig. 8, and all methods of this project."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from worstcase.evaluation.figures.accuracy_over_thg import accuracy_over_thg
from worstcase.evaluation.figures.methods import methods
from worstcase.paper import numbers
from worstcase.paper.bars import bars
from worstcase.paper.beside import THG, beside_paper, published, rows_beside
from worstcase.report.rows import CLEAN, GIVEN, differing, drawn_together, lowest
from worstcase.report.section import Section

HARDENED = ["flwc", "lwc", "ensemble"]
ATTACKS = [CLEAN, *HARDENED]
CARRIED_UP = "Of one network that is attacked at several th_g, a chip found at a smaller one counts at the larger."


def table5(results: pd.DataFrame) -> Section | None:
    found = _hardened(results)
    trained = found.of.notna() & found.method.isin(["vanilla", "va", "adversarial"])
    found = found[trained & (found.thg == THG) & (found.attack != CLEAN)]
    if set(found.method) <= {"vanilla"}:
        return None
    by_lwc = found.attack == "lwc"
    beside = found.assign(paper=published(found, numbers.TABLE5, "method").where(by_lwc))
    beside["paper deviation"] = published(found, numbers.TABLE5_DEVIATIONS, "method").where(by_lwc)
    rows = rows_beside(beside, ["network", "method", "attack"])
    caption = (
        f"Regular, variation-aware and adversarial training at th_g 0.03. The paper's attack is LWC. {CARRIED_UP}"
    )
    title = "Table V: training methods"
    return Section("table5", title, caption, rows, found, bars("table5", rows, "accuracy"))


def table6(results: pd.DataFrame) -> Section | None:
    trained = ["vanilla", "trice", "atrice"]
    found = _hardened(results)
    of_it = (found.of == numbers.CONVNET) & found.method.isin(trained) & found.thg.isin(numbers.TABLE6.keys())
    found = found[of_it.fillna(False)]
    if set(found.method) <= {"vanilla"}:
        return None
    beside = found.assign(paper=_of_table6(found), sigma_d=[f"{10 * thg:g}" for thg in found.thg])
    rows = rows_beside(_sorted(beside, ["method", "thg", "attack"], trained), ["method", "sigma_d", "attack"])
    caption = (
        "ConvNet on CIFAR-10 at th_g = sigma_d / 10. The paper's numbers stand beside F-LWC, since its 1.51 % for "
        f"vanilla at sigma_d 0.3 is F-LWC's number in Table IV. {CARRIED_UP}"
    )
    title = "Table VI: TRICE and A-TRICE"
    return Section("table6", title, caption, rows, found, _over_thg("table6", found))


def fig8a(results: pd.DataFrame) -> Section | None:
    return _fig8("fig8a", numbers.LENET, results)


def fig8b(results: pd.DataFrame) -> Section | None:
    return _fig8("fig8b", numbers.CONVNET, results)


def fig8c(results: pd.DataFrame) -> Section | None:
    return _fig8("fig8c", numbers.RESNET18, results)


def _fig8(name: str, network: str, results: pd.DataFrame) -> Section | None:
    found = _hardened(results)
    found = found[(found.of == network).fillna(False) & ~found.method.isin(["trice", "adversarial"])]
    if found.thg.nunique() < 2 or found.method.nunique() < 2:
        return None
    of_table5 = published(found, numbers.TABLE5, "method").where((found.attack == "lwc") & (found.thg == THG))
    of_table6 = _of_table6(found).where(found.of == numbers.CONVNET)
    beside = found.assign(paper=of_table5.fillna(of_table6), th_g=found.thg.map("{:g}".format))
    rows = rows_beside(_sorted(beside, ["method", "attack", "thg"]), ["method", "attack", "th_g"])
    caption = (
        "Accuracy against the write-verify bound. The paper prints no numbers with this figure; the column "
        f"'paper' repeats those of Tables V and VI. {CARRIED_UP}"
    )
    title = f"Fig. {name[3:].replace('8', '8(')}): {network}"
    return Section(name, title, caption, rows, found, _over_thg(name, found))


def compared_methods(results: pd.DataFrame) -> Section | None:
    """Not in the paper: all methods under all attacks at th_g 0.03."""
    found = _hardened(results)
    found = found[found.thg == THG]
    if len(set(found.method) - {GIVEN}) < 3:
        return None
    rows = rows_beside(_sorted(found, ["shown", "method", "attack"]), ["network", "method", "attack"])
    compared = [(title, own) for title, own in method_tables(results) if own.method.nunique() > 2]
    figures = {f"methods-{number}": methods(own, title) for number, (title, own) in enumerate(compared, 1)}
    caption = (
        "All training methods at th_g 0.03. One attack may fail on a hardened network: compare the lowest. "
        f"{CARRIED_UP}"
    )
    return Section("methods", "Training methods of this project", caption, rows, found, figures)


def method_tables(results: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """For each network and setting, a title and what each attack found at th_g 0.03, by method and seed."""
    found = _hardened(results)
    found = found[found.thg == THG]
    found["differs"] = differing(found, ["shown", "scale"], ["network_settings", "reference_settings"])
    tables = [lowest(own, ["method", "attack", "seed"]) for own in drawn_together(found)]
    named = [[*own.iloc[0][["shown", "scale"]], f"th_g {THG:g}", own.iloc[0]["differs"]] for own in tables]
    return [(", ".join(filter(None, names)), own) for names, own in zip(named, tables, strict=True)]


def _hardened(results: pd.DataFrame) -> pd.DataFrame:
    """What F-LWC, LWC and the ensemble find at the th_g of the training, and the accuracy as programmed."""
    found = beside_paper(_carried_up(results[results.as_trained]))
    return found[found.attack.isin(ATTACKS) & found.default]


def _carried_up(results: pd.DataFrame) -> pd.DataFrame:
    """The results, each no higher than what its attack found on the same network at a smaller th_g.

    A chip in a smaller box is in the larger one too. Of methods that train without th_g, each job of a sweep
    attacks the same network at its own th_g, and knows nothing of what the others find.
    """
    once = results.trained_once.fillna(False)
    network = ["network", "dataset", "method", "seed", "network_settings", "method_settings", "reference_settings"]
    same = [*network, "train_seconds", "clean_accuracy", "attack", "attack_settings"]  # a copy keeps the seconds
    by_thg = results[once].sort_values("thg", kind="stable")
    lowest_yet = by_thg.groupby(same, dropna=False).attacked_accuracy.cummin()
    return results.assign(attacked_accuracy=results.attacked_accuracy.mask(once, lowest_yet))


def _of_table6(found: pd.DataFrame) -> pd.Series:
    """Table VI's numbers for ConvNet, beside F-LWC's results."""
    values = [
        numbers.TABLE6.get(thg, {}).get(method) if attack == "flwc" else None
        for thg, method, attack in zip(found.thg, found.method, found.attack, strict=True)
    ]
    return pd.Series(values, found.index, dtype=float)


def _sorted(found: pd.DataFrame, by: list[str], trained: list[str] | None = None) -> pd.DataFrame:
    orders = {"attack": ATTACKS, "method": trained}

    def key(column: pd.Series) -> pd.Series:
        order = orders.get(str(column.name))
        return column.map(order.index) if order else column

    return found.sort_values(by, key=key, kind="stable")


def _over_thg(name: str, found: pd.DataFrame) -> dict[str, Figure]:
    """One figure for each attack, and each network and scale that has a curve."""
    figures: dict[str, Figure] = {}
    number = 0  # of networks and scales with a curve
    for own in drawn_together(found):
        own = lowest(own, ["method", "attack", "seed", "thg"])
        curves = {attack: own[own.attack == attack] for attack in HARDENED}
        drawn = {attack: of for attack, of in curves.items() if of.thg.nunique() > 1}
        number += bool(drawn)
        for attack, of in drawn.items():
            part = attack if number == 1 else f"{attack}-{number}"
            # of settings that are equally frequent, the lowest of a seed counts
            figures[f"{name}-{part}"] = accuracy_over_thg(of.assign(attack_settings="{}"), own.scale.iloc[0])
    return figures
