"""Monte Carlo's chips that several evaluations have drawn, put together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

from worstcase.app import ranges
from worstcase.app.state import shown
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.settings import without_place


def merge(settings: dict[str, Any], evaluations: Path, folder: Path) -> None:
    """Leave in an evaluation's folder the instances that it needs, from finished evaluations that drew them.

    Args:
        settings: of the evaluation, by Monte Carlo.
        evaluations: the folder of those that may have drawn them: with equal settings, but for the range.
        folder: of the evaluation.

    Raises:
        ValueError: some have not been drawn; they are named.
    """
    from worstcase.attacks.instances import FILE
    from worstcase.evaluation.evaluate import folder_at

    alike = _alike(settings)
    shares = sorted(share for share, record in finished_runs([evaluations]) if _alike(record.config) == alike)
    first = settings["attack"]["first"]
    wanted = range(first, first + settings["attack"]["instances"])
    thgs = ranges.bounds(settings)
    for file in [Path(folder_at(thg, thgs), FILE) for thg in thgs]:
        content = _merged([share / file for share in shares], wanted, evaluations)
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content, newline="\n")


def _merged(files: list[Path], wanted: range, evaluations: Path) -> str:
    """The content of a file of instances with those of several."""
    from worstcase.attacks.instances import COLUMNS, read_lines

    homes: dict[str, Path] = {}
    lines: dict[int, str] = {}
    for file in files:
        header, found = read_lines(file)
        if not found.keys().isdisjoint(wanted):
            homes[header] = file
            lines |= found
    if missing := [index for index in wanted if index not in lines]:
        parts = "; ".join(_parts(missing))
        raise ValueError(f"merge=true: no finished evaluation in {shown(evaluations)} has {parts}")
    if len(homes) > 1:
        one, other = list(homes.values())[:2]
        raise ValueError(f"merge=true: {shown(one)} and {shown(other)} differ in their first lines")
    return "\n".join([*homes, COLUMNS, *(lines[index] for index in wanted), ""])


def _alike(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that must be equal for evaluations to share instances."""
    kept = without_place(settings)
    attack = settings.get("attack")
    if isinstance(attack, dict):
        kept["attack"] = {key: value for key, value in attack.items() if key not in ("first", "instances")}
    others = ("merge", "heldout", "diagnosis", "chip", "chip_holds", "chip_digest")
    return {key: value for key, value in kept.items() if key not in others}


def _parts(missing: list[int]) -> Iterator[str]:
    """Chips in ranges, each with the settings that draw it."""
    offset = count()
    for _, group in groupby(missing, key=lambda index: index - next(offset)):
        part = list(group)
        yield f"chips {part[0]} to {part[-1]} (attack.first={part[0]} attack.instances={len(part)})"
