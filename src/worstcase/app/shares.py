"""Monte Carlo's chips that several evaluations have drawn, put together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

from worstcase.app import schema
from worstcase.app.state import shown
from worstcase.attacks.instances import COLUMNS, FILE, read_lines
from worstcase.evaluation.record import finished_runs
from worstcase.evaluation.settings import without_place


def merge(settings: dict[str, Any], evaluations: Path, folder: Path) -> None:
    """Leave in a folder the instances that an evaluation needs and finished ones like it have drawn.

    Args:
        settings: of the evaluation.
        evaluations: the folder of those that may have drawn them.
        folder: of the evaluation.

    Raises:
        ConfigError: it is not of Monte Carlo, or some instances have not been drawn; they are named.
    """
    attack = settings["attack"]
    if attack["_target_"] != "worstcase.attacks.MonteCarlo":
        raise schema.ConfigError("merge=true: is for attack=monte_carlo")
    alike = _alike(settings)
    shares = [share for share, record in finished_runs([evaluations]) if _alike(record.config) == alike]
    wanted = range(attack["first"], attack["first"] + attack["instances"])
    thgs = schema.bounds(settings)
    for file in [Path(f"thg{thg:g}", FILE) for thg in thgs] if len(thgs) > 1 else [Path(FILE)]:
        headers, lines = {}, {}
        for share in sorted(shares):
            header, drawn = read_lines(share / file)
            found = {index: line for index, line in drawn.items() if index in wanted}
            if found:
                headers[header] = share / file
                lines |= found
        if missing := [index for index in wanted if index not in lines]:
            parts = "; ".join(_parts(missing))
            raise schema.ConfigError(f"merge=true: no finished evaluation in {shown(evaluations)} has {parts}")
        if len(headers) > 1:
            first, second = list(headers.values())[:2]
            raise schema.ConfigError(f"merge=true: {shown(first)} and {shown(second)} hold chips of different runs")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("\n".join([*headers, COLUMNS, *(lines[index] for index in wanted), ""]))


def _alike(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the right answers of an instance, and more; equal for evaluations that may share them."""
    kept = without_place(settings)
    attack = settings.get("attack")
    if isinstance(attack, dict):
        kept["attack"] = {key: value for key, value in attack.items() if key not in ("first", "instances")}
    return {key: value for key, value in kept.items() if key not in ("merge", "heldout", "diagnosis")}


def _parts(missing: list[int]) -> Iterator[str]:
    """Chips in ranges, each with the settings that draw it."""
    offset = count()
    for _, group in groupby(missing, key=lambda index: index - next(offset)):
        part = list(group)
        yield f"chips {part[0]} to {part[-1]} (attack.first={part[0]} attack.instances={len(part)})"
