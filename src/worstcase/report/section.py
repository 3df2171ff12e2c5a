"""One part of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from worstcase.evaluation.record import IN_PYTHON
from worstcase.report.rows import GIVEN

UNITS = {"layer_max": "th_g is in units of each layer's largest weight", "unit": "th_g is in weight units"}


@dataclass(frozen=True, eq=False)
class Section:
    """One figure or table: what is shown, and the results that it was made from."""

    name: str
    """Also the name of its experiment and its files."""
    title: str
    caption: str
    rows: pd.DataFrame
    """Labels, unit and values; fractions where the unit is ``%``."""
    results: pd.DataFrame
    """Rows of `worstcase.results_frame`."""
    figures: dict[str, Figure] = field(default_factory=dict)
    """By file name: the section's name, or that and ``-PART``."""

    @property
    def runs(self) -> pd.DataFrame:
        """One of its results for each run."""
        return self.results.drop_duplicates("folder")

    @property
    def seeds(self) -> str:
        numbers = ", ".join(map(str, found := sorted(self.runs.seed.dropna().unique())))
        return f"{len(found)} seeds ({numbers})" if len(found) > 1 else f"seed {numbers}" if found else GIVEN

    @property
    def convention(self) -> str:
        """What th_g is relative to."""
        return " or ".join(f"{UNITS[name]} (full_scale={name})" for name in sorted(set(self.runs.full_scale)))

    @property
    def notes(self) -> list[str]:
        """What a reader must know before comparing its rows: commits, changes, and red flags."""
        notes = []
        runs = self.runs
        made = set(runs.commit.fillna("unknown")) | set(
            runs.trained_commit[runs.training.notna()].fillna("unknown")
        )
        commits = sorted({commit.split("-")[0][:9] for commit in made})
        if len(commits) > 1:
            notes.append(f"Its records come from different commits: {', '.join(commits)}.")
        if any(commit.endswith("-dirty") for commit in made):
            notes.append("Some of its records were made with uncommitted changes.")
        if flagged := int((runs["flags"] > 0).sum()):
            notes.append(f"{flagged} of its {len(runs)} runs raised red flags, listed in their records.")
        return notes

    @property
    def sweeps(self) -> list[str]:
        """The commands of the sweeps that made its runs; empty if some run was not part of a sweep."""
        return [] if self.runs.sweep.isna().any() else sorted(set(self.runs.sweep))

    @property
    def commands(self) -> list[str]:
        """The command of each run that was made by one."""
        return sorted(set(self.runs.command) - {IN_PYTHON})
