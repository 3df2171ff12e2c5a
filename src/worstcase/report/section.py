"""One figure or table of the report, and what its makers share."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from textwrap import shorten

from matplotlib.figure import Figure

from worstcase.evaluation.settings import trains_without_thg
from worstcase.report import paper
from worstcase.report.rows import CLEAN, Result, Row, Run, results

THG = 0.03  # of the paper's tables and figures but Fig. 8 and Table VI


@dataclass(frozen=True)
class Section:
    """One figure or table: what is shown, and the runs that it was made from."""

    name: str
    """Of its experiment and its files."""
    title: str
    caption: str
    rows: list[Row]
    runs: list[Run]
    figures: dict[str, Figure] = field(default_factory=dict)

    @property
    def seeds(self) -> str:
        numbers = sorted({run.seed for run in self.runs})
        return f"{len(numbers)} seeds ({', '.join(map(str, numbers))})" if len(numbers) > 1 else "1 seed"

    @property
    def convention(self) -> str:
        """What th_g is relative to."""
        units = {"layer_max": "th_g is of each layer's largest weight", "unit": "th_g is in weight units"}
        found = sorted({run.record.full_scale for run in self.runs})
        return " or ".join(f"{units[name]} (full_scale={name})" for name in found)

    @property
    def notes(self) -> list[str]:
        """What a reader must know before comparing its rows, and the runs' red flags."""
        notes = []
        records = [record for run in self.runs for record in (run.record, run.trained) if record]
        commits = sorted({(record.git_commit or "unknown").split("-")[0][:9] for record in records})
        if len(commits) > 1:
            notes.append(f"Its records come from different commits: {', '.join(commits)}.")
        if any((record.git_commit or "").endswith("-dirty") for record in records):
            notes.append("Some of its records were made with uncommitted changes.")
        if flagged := sum(bool(run.record.flags) for run in self.runs):
            notes.append(f"{flagged} of its {len(self.runs)} runs raised red flags, listed in their records.")
        return notes

    @property
    def commands(self) -> list[str]:
        return sorted({run.record.command for run in self.runs})

    @property
    def command(self) -> str | None:
        """The one command that makes its runs and no others, if they are all jobs of one experiment."""
        try:
            words = [shlex.split(command)[3:] for command in self.commands]
        except ValueError:  # a quote is open
            return None
        jobs = [dict(word.partition("=")[::2] for word in job) for job in words]
        if "experiment" not in jobs[0] or any(run.record.kind != "train" for run in self.runs):
            return None
        first = ("experiment", "scale")
        keys = sorted(dict.fromkeys(key for job in jobs for key in job), key=lambda key: key not in first)
        values = {key: list(dict.fromkeys(job[key] for job in jobs if key in job)) for key in keys}
        if prod(map(len, values.values())) > len(jobs) * len(values.get("thg", [""])):
            return None
        swept = [dict(zip(keys, combination, strict=True)) for combination in product(*values.values())]
        without_thg = {run.record.method for run in self.runs if trains_without_thg(run.record.config)}

        def training(job: Mapping[str, str]) -> frozenset[tuple[str, str]]:
            left_out = "thg" if job.get("method") in without_thg else None
            return frozenset((key, value) for key, value in job.items() if key != left_out)

        if {training(job) for job in swept} != {training(job) for job in jobs}:
            return None
        return shlex.join(
            ["python", "-m", "src.train", "-m", *(f"{key}={','.join(of)}" for key, of in values.items())]
        )


def section(
    name: str,
    title: str,
    caption: str,
    rows: list[Row],
    found: Iterable[Result],
    figures: dict[str, Figure] | None = None,
) -> Section | None:
    """A section of the results that its rows were made of; figures by what tells them apart. None without rows."""
    if not rows:
        return None
    runs = list({id(r.run): r.run for r in found}.values())
    named = {f"{name}-{part}" if part else name: figure for part, figure in (figures or {}).items()}
    return Section(name, title, caption, rows, runs, named)


def at(runs: Sequence[Run], thg: float) -> list[Result]:
    return [r for r in results(runs) if r.thg == thg and r.as_trained]


def in_default_form(result: Result) -> bool:
    """Not F-LWC in other than ten steps (Fig. 7), nor LWC with the search for c (Fig. 3)."""
    usual = {"flwc": ("steps", 10), "lwc": ("project", "step")}
    key, value = usual.get(result.attack, ("", None))
    return result.parameters.get(key, value) == value


def is_papers(result: Result) -> bool:
    return result.run.network in paper.NETWORKS


def attack(result: Result) -> str:
    return "none" if result.attack == CLEAN else result.attack


def row(run: Run, labels: dict[str, str], value: float, *, unit: str = "%", published: float | None = None) -> Row:
    return Row(labels, [value], unit, published, scale=", ".join(run.differences()))


def bars(rows: Sequence[Row], what: str) -> dict[str, Figure]:
    """A bar a row with each seed as a dot, and the paper's value as a line across it; none of over 100 rows."""
    if not rows or len(rows) > 100:
        return {}
    several = len({row.scale for row in rows}) > 1
    scales = [f"\n({shorten(row.scale, 80, placeholder=' ...')})" if several and row.scale else "" for row in rows]
    names = [", ".join(row.labels.values()) + scale for row, scale in zip(rows, scales, strict=True)]
    figure = Figure(figsize=(8.0, 1.2 + (0.42 if several else 0.32) * len(rows)), layout="constrained")
    axes = figure.subplots()
    labelled = False
    for place, row in enumerate(rows):
        axes.barh(place, row.mean, 0.7, xerr=row.deviation or 0, color="C0", alpha=0.6, capsize=3)
        axes.plot(row.values, [place] * len(row.values), ".", color="C0")
        if row.paper is not None:
            label = None if labelled else "paper"
            axes.plot([row.paper] * 2, [place - 0.4, place + 0.4], color="C3", lw=2, label=label)
            labelled = True
    axes.set_yticks(range(len(rows)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(-1, 102)
    axes.set_xlabel(f"{what} (%)\nmean, standard deviation, each seed")
    axes.grid(axis="x", alpha=0.3)
    if labelled:
        figure.legend(loc="outside lower center", fontsize="small")
    return {"": figure}
