"""What runs found, flattened and gathered over seeds: the rows of every table, from records alone."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from worstcase.evaluation.record import AttackRecord, Record, runs_and_trainings
from worstcase.evaluation.settings import trains_without_thg, without_place
from worstcase.report import paper

CLEAN = "clean"
"""In the place of an attack: the accuracy as programmed."""
SUBSTITUTES = {"mnist5k": "mnist"}
"""Data sets that stand for one of the paper's at a smaller scale."""
SAMPLES = {**paper.SAMPLES, "mnist5k": 1000}
"""Of the test splits."""
Settings = tuple[tuple[str, str], ...]
"""Dotted names and values as JSON, in order of name."""
GIVEN = {"torchvision.models:resnet18": "resnet18_imagenet", "torchvision.models:vgg16": "vgg16"}
"""Networks of the paper that are not trained here but given to an evaluation, `net=`."""
LONGEST = 200
"""Characters of a cell that are shown."""
NUMBERS = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?( [+-]?\d+(\.\d+)?(e[+-]?\d+)?)*")
"""One, or several with a space between."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run: its record, and that of the training whose network it is about (None: weights given)."""

    record: Record
    trained: Record | None

    @property
    def network(self) -> paper.Network:
        """As `paper` names it."""
        model, dataset = self.record.model, self.record.dataset
        return GIVEN.get(model, model), SUBSTITUTES.get(dataset, dataset)

    @property
    def network_name(self) -> str:
        """As it is shown."""
        return paper.NETWORKS.get(self.network) or f"{self.record.model}, {self.record.dataset}"

    @property
    def shown(self) -> str:
        """The network, and how its scale differs from the paper's."""
        return ", ".join([self.network_name, *self.differences()])

    @property
    def seed(self) -> int:
        """Of the training; an evaluation's own is its attack's."""
        return self.trained.seed if self.trained else 0

    @cached_property
    def network_settings(self) -> Settings:
        """Equal for runs about equally made networks, but for seed, method and th_g."""
        made = ("net", "init_from", "model", "trainer", "full_scale", "layers", "exclude")
        given = ("checkpoint",) if self.trained else ("checkpoint", "weights")
        trained = (self.trained or self.record).config
        config = {key: trained.get(key) for key in made} | {key: self.record.config.get(key) for key in given}
        return _settings(config | {"dataset": _data_settings(trained)})

    @cached_property
    def settings(self) -> Settings:
        """Equal for runs whose numbers are of the same thing but for seed, method, th_g and attack."""
        measured: dict[str, Any] = {key: self.record.config.get(key) for key in ("layers", "exclude")}
        measured["data"] = _data_settings(self.record.config)
        for key in ("dataset", "samples", "full_scale", "weight_bits", "activation_bits"):
            measured[key] = getattr(self.record, key)
        return self.network_settings + _settings({"measured": measured})

    @cached_property
    def method_settings(self) -> Settings:
        trained = self.trained or self.record
        return _settings({key: trained.config.get(key) for key in ("method", "val_attack")})

    def differences(self) -> list[str]:
        """How its scale differs from the paper's; empty for the paper's."""
        r, network = self.record, self.network
        if network not in paper.NETWORKS:
            return ["not in the paper"]
        differ = []
        if r.dataset != network[1]:
            differ.append(f"{r.dataset} for {network[1]}")
        if r.samples < SAMPLES[r.dataset]:
            differ.append(f"{r.samples:,} test images")
        config = (self.trained or r).config
        if limit := (config.get("dataset") or {}).get("limit"):
            differ.append(f"at most {limit:,} training images")
        model = config.get("model") or {}
        if (width := model.get("width", 1)) != 1:
            differ.append(f"width {width:g}")
        if (variant := model.get("variant", "authors")) != "authors":
            differ.append(f"variant {variant}")
        if (r.weight_bits, r.activation_bits) != (paper.BITS[network],) * 2:
            bits = [f"{bits} bits" if bits else "float" for bits in (r.weight_bits, r.activation_bits)]
            differ.append(bits[0] if bits[0] == bits[1] else f"{bits[0]} weights, {bits[1]} outputs")
        if r.epochs is not None and r.epochs < paper.EPOCHS:
            differ.append(f"{r.epochs} epochs")
        if r.full_scale != "layer_max":
            differ.append("th_g in weight units")
        if r.config.get("layers", ["*"]) != ["*"] or r.config.get("exclude"):
            differ.append("some layers exact")
        return differ


class Result(NamedTuple):
    """What one attack found in one run, in percent; as programmed, see `CLEAN`."""

    run: Run
    attack: str
    thg: float
    accuracy: float
    found: AttackRecord | None = None

    @property
    def minutes(self) -> float:
        return self.found.seconds / 60 if self.found else 0.0

    @property
    def parameters(self) -> Mapping[str, Any]:
        return self.found.parameters if self.found else {}

    @property
    def method(self) -> str:
        return self.run.record.method or "given weights"

    @property
    def scale(self) -> str:
        """How it differs from the paper's; empty for the paper's."""
        differ = self.run.differences()
        chips = self.parameters.get("instances", paper.CHIPS)
        if self.run.network in paper.NETWORKS and chips < paper.CHIPS:
            differ.append(f"{chips:,} chips")
        return ", ".join(differ)

    @property
    def attack_settings(self) -> Settings:
        return _settings(self.parameters)

    @property
    def as_trained(self) -> bool:
        """Attacked at the th_g that the network was trained for, if it was for one."""
        trained = self.run.trained
        if trained is None:
            return self.run.record.source_run is None  # weights given; of a training that is gone nothing is known
        if trains_without_thg(trained.config):
            return True
        thg = trained.config.get("thg")  # of none or of several in a record that is not of this project's training
        return (
            isinstance(thg, int | float)
            and self.thg == rounded(thg)
            and self.run.record.full_scale == trained.full_scale
        )


@dataclass(frozen=True)
class Row:
    """One quantity of a table, over seeds, and the paper's."""

    labels: dict[str, str]
    values: list[float]
    """One a seed."""
    unit: str = "%"
    paper: float | None = None
    paper_deviation: float | None = None
    scale: str = ""
    """How it differs from the paper's."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def cells(self) -> dict[str, str]:
        """All columns as they are shown."""
        return {
            **self.labels,
            "measured": f"{self._shown(self.mean, self.deviation)} {self.unit}".strip(),
            "paper": "-" if self.paper is None else self._shown(self.paper, self.paper_deviation),
            "seeds": str(len(self.values)),
            "each seed": " ".join(map(self._shown, self.values)),
            "scale": self.scale or "the paper's",
        }

    def numbers(self) -> dict[str, str]:
        """All columns of the CSV, numbers in full."""
        return {
            **self.labels,
            "unit": self.unit,
            "mean": _full(self.mean),
            "deviation": _full(self.deviation),
            "seeds": str(len(self.values)),
            "each seed": " ".join(map(_full, self.values)),
            "paper": "" if self.paper is None else str(self.paper),
            "paper deviation": "" if self.paper_deviation is None else str(self.paper_deviation),
            "scale": self.scale,
        }

    def _shown(self, value: float, deviation: float | None = None) -> str:
        digits = ".2f" if self.unit == "%" else ".3g"
        return f"{value:{digits}}" + ("" if deviation is None else f" ± {deviation:{digits}}")


@dataclass(frozen=True, kw_only=True)
class Finding(Row):
    """What one attack found in one run: nothing is gathered, and the paper has no number of it."""

    clean: float
    flags: int

    def cells(self) -> dict[str, str]:
        return {
            **self.labels,
            "clean accuracy": f"{self._shown(self.clean)} {self.unit}",
            "lowest found": f"{self._shown(self.mean)} {self.unit}",
            "flags": str(self.flags),
            "scale": self.scale or "the paper's",
        }

    def numbers(self) -> dict[str, str]:
        return {
            **self.labels,
            "unit": self.unit,
            "clean accuracy": _full(self.clean),
            "lowest found": _full(self.mean),
            "flags": str(self.flags),
            "scale": self.scale,
        }


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """The finished runs below some folders, oldest first, each with its training's record where that is there."""
    return [Run(record, trained) for _, record, trained in runs_and_trainings(folders)]


def results(runs: Iterable[Run]) -> list[Result]:
    """Every number of every run; the accuracy as programmed is told at each th_g that was attacked."""
    flat = []
    for run in runs:
        for found in run.record.attacks:
            thg = rounded(found.thg)
            flat.append(Result(run, found.attack, thg, 100 * found.accuracy, found))
            flat.append(Result(run, CLEAN, thg, 100 * run.record.clean_accuracy))
    return flat


def gather(
    found: Iterable[Result],
    labels: Callable[[Result], dict[str, str]],
    *,
    value: Callable[[Result], float] = lambda result: result.accuracy,
    unit: str = "%",
    published: Callable[[Result], float | None] = lambda result: None,
    published_deviation: Callable[[Result], float | None] = lambda result: None,
) -> list[Row]:
    """A row for each combination of labels and settings; of a seed, the result with the lowest accuracy counts.

    Rows of equal labels and scale whose settings differ in something else say in what. Rows of one first label
    stand together, and among these, of one scale.
    """
    groups: dict[tuple, list[Result]] = {}
    variants: dict[tuple, set[Settings]] = {}
    for result in found:
        named, scale, trained = labels(result), result.scale, result.run.settings + result.run.method_settings
        settings = trained + result.attack_settings
        of = (next(iter(named.values())), scale, result.method, result.attack)
        variants.setdefault(of, set()).add(settings)
        key = (tuple(named.items()), scale, result.method, trained, settings, of)
        groups.setdefault(key, []).append(result)
    shared = {of: set.intersection(*map(set, settings)) for of, settings in variants.items()}
    firsts = list(dict.fromkeys(named[0] for named, *_ in groups))
    rows = []
    for key in sorted(groups, key=lambda key: (firsts.index(key[0][0]), *key[1:4])):
        named_items, scale, *_, settings, of = key
        seeds = lowest(groups[key], lambda result: result.run.seed)
        first = next(iter(seeds.values()))
        rows.append(
            Row(
                dict(named_items),
                [value(seeds[seed]) for seed in sorted(seeds)],
                unit,
                published(first),
                published_deviation(first),
                ", ".join(filter(None, [scale, *differing(settings, shared[of])])),
            )
        )
    return rows


def lowest(found: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, Result]:
    """By key, of its results the one with the lowest accuracy."""
    kept: dict[Any, Result] = {}
    for result in found:
        if (at := key(result)) not in kept or result.accuracy < kept[at].accuracy:
            kept[at] = result
    return kept


def differing(settings: Settings, shared: Collection[tuple[str, str]]) -> list[str]:
    """Of some settings those, as NAME=VALUE, that not all share."""
    own = (setting for setting in settings if setting not in shared)
    return list(dict.fromkeys(f"{name.split('.')[-1]}={value.strip(chr(34))}" for name, value in own))


def columns(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of a table as it is shown; a label that a row has not is empty."""
    header, body = _table(rows, [row.cells() for row in rows])
    return header, [[cut(cell, LONGEST) for cell in line] for line in body]


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row, numbers in full; no cell is a formula to a spreadsheet."""
    header, body = _table(rows, [row.numbers() for row in rows])
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([_no_formula(cell) for cell in line] for line in (header, *body))
    return lines.getvalue()


def cut(text: str, most: int) -> str:
    """At most so many characters of it."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _table(rows: Sequence[Row], lines: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Labels first, in order of appearance."""
    header = list(dict.fromkeys([*(key for row in rows for key in row.labels), *lines[0]]))
    return header, [[line.get(key, "") for key in header] for line in lines]


def _no_formula(cell: str) -> str:
    """With an apostrophe before what a spreadsheet would execute: records may be of others."""
    executed = cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    return f"'{cell}" if executed and not NUMBERS.fullmatch(cell) else cell


def _full(number: float | None) -> str:
    return "" if number is None else f"{number:.10g}"


def rounded(thg: float) -> float:
    """To be compared: in floats 3 x 0.1 / 10 is not 0.03."""
    return round(thg, 9)


def _data_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's data set, without which draw of it and where it lies."""
    return {key: value for key, value in without_place(config)["dataset"].items() if key != "seed"}


def _settings(config: Mapping[str, Any]) -> Settings:
    def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{before}{key}.")
            else:
                yield f"{before}{key}", json.dumps(value)

    return tuple(sorted(flat(config)))
