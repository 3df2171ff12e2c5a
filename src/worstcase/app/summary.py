"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from worstcase.evaluation.record import RECORD, Record
from worstcase.evaluation.record_parts import outside, standing
from worstcase.found import at_most
from worstcase.text import visible


def print_summary(record: Record, folder: str) -> None:
    """Show a record on standard output, with its red flags and where it lies."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    unit = "of each layer's largest weight" if record.full_scale == "layer_max" else "in weight units"
    seconds = [f"training {record.train_seconds:.1f}"] if record.train_seconds is not None else []
    names = dict.fromkeys(found.attack for found in record.attacks)
    seconds += [f"{name} {sum(f.seconds for f in record.attacks if f.attack == name):.1f}" for name in names]
    if record.certified:
        seconds.append(f"proof {sum(of['seconds'] for of in record.certified):.1f}")
    title = [f"{record.model} on {record.dataset}", record.method or "given weights", f"seed {record.seed}"]
    if record.weight_bits or record.activation_bits:
        title.append(f"bits {record.weight_bits or 'float'}/{record.activation_bits or 'float'}")
    table = Table(
        title=Text(visible(", ".join(title)), "table.title"),
        box=box.SIMPLE_HEAD,
        show_header=False,
    )

    def add(name: str, value: str) -> None:
        table.add_row(Text(visible(name)), Text(visible(value)))  # not markup: a path or a foreign record's text

    add("clean accuracy", f"{record.clean_accuracy:.2%} of {record.samples} {record.reference} samples")
    attacked = {found.thg for found in record.attacks}
    several = len(attacked) > 1
    for found in record.attacks:
        at = f" at th_g {found.thg:g}" if several else ""
        add(f"lowest found ({found.attack}){at}", f"{found.accuracy:.2%}")
        halves = [one for one in (found.attacked_half_accuracy, found.heldout_accuracy) if one is not None]
        if halves[1:]:
            add(f"  attacked half, held-out half{at}", ", ".join(f"{one:.2%}" for one in halves))
        if found.distribution:
            for row in _distribution_rows(found.distribution):
                add(*row)
    for proven in (of for of in record.certified if of["thg"] in attacked):
        at = f" at th_g {proven['thg']:g}" if several else ""
        add(f"proven lowest ({proven['method']}){at}", f"{proven['accuracy']:.2%}")
    for note in dict.fromkeys(proven["note"] for proven in record.certified if proven.get("note")):
        add("", note)
    for proven in record.certified_up_to:
        thg = "nowhere" if proven["thg"] is None else f"up to th_g {proven['thg']:.3g} (interval)"
        add(f"{proven['accuracy']:.0%} proven", thg)
    if record.not_certified:
        add("proven lowest", f"none: {record.not_certified}")
    if chip := record.chip:
        where = standing(chip["accuracy"], chip["failed"], record.certified_accuracy, record.attacked_accuracy)
        add("chip that was read back", f"{chip['accuracy']:.2%}, {where}")
        add("", outside(chip["failed_by_array"]))
        if again := chip.get("again"):
            few = "not even all weights" if again["weights"] is None else f"the first {again['weights']:,} weights"
            add("programmed again", f"{few} of {again['file']}: {again['accuracy']:.2%}")
    share = f"{record.parameters_perturbed / record.parameters:.1%}"
    add("programmed", f"{record.parameters_perturbed:,} of {record.parameters:,} values ({share})")
    largest = f"{'at most ' if record.tolerance else ''}{record.thg:g} "
    add("th_g", f"{'' if several else largest}{unit}")
    add("seconds", ", ".join(seconds))
    console = Console()
    console.print(table)
    for flag in record.flags:
        console.print(Text.assemble("  ", ("flag", "bold red"), f": {visible(flag)}"), soft_wrap=True)
    console.print(Text(f"  record: {visible(f'{folder}/{RECORD}')}"), soft_wrap=True)


def _distribution_rows(of: dict[str, Any]) -> Iterator[tuple[str, str]]:
    deviation = "" if of["deviation"] is None else f", standard deviation {of['deviation']:.2%}"
    yield (
        f"  {of['instances']} chips ({of['sampler']})",
        f"mean {of['mean']:.2%}{deviation}, lowest {of['minimum']:.2%}",
    )
    for kpp in of["kpp"]:
        low, high = ("?" if end is None else f"{end:.2%}" for end in (kpp["low"], kpp["high"]))
        yield f"  KPP at {kpp['percent']:g} %", f"{kpp['accuracy']:.2%}, with 95 % confidence {low} to {high}"
    yield "  chips worse than all of these", f"at most {at_most(of['unseen'])}, with 95 % confidence"
    if of["infeasible"]:
        yield "  chips outside the bound", str(of["infeasible"])
