"""All figures and tables that finished runs allow, as PNG, CSV and one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from worstcase.evaluation.record import visible
from worstcase.report import attacks, training, worst_chip
from worstcase.report.files import replace_files
from worstcase.report.rows import Run, as_csv, columns, cut, read_runs
from worstcase.report.section import Section
from worstcase.report.your_runs import your_runs

log = logging.getLogger(__name__)

PAGE = "index.html"
DPI = 150
SECTIONS: dict[str, Callable[[Sequence[Run]], Section | None]] = {  # in the order of the paper
    "fig1": attacks.fig1,
    "table1": attacks.table1,
    "table2": attacks.table2,
    "fig3": worst_chip.fig3,
    "fig4": worst_chip.fig4,
    "table3": worst_chip.table3,
    "fig5": worst_chip.fig5,
    "fig6": worst_chip.fig6,
    "table4": attacks.table4,
    "fig7": attacks.fig7,
    "table5": training.table5,
    "fig8a": training.fig8a,
    "fig8b": training.fig8b,
    "fig8c": training.fig8c,
    "table6": training.table6,
    "methods": training.compared_methods,
    "monte_carlo": attacks.sampled_chips,
}
"""Each gives None where the runs do not allow it."""

_NAMES = "|".join(["runs", *SECTIONS])
_OWN = re.compile(rf"{re.escape(PAGE)}|({_NAMES})\.csv|({_NAMES})(-[a-z0-9_]+)*\.png")


def write_report(folders: Iterable[Path], out: Path) -> list[Section]:
    """Write the report of the finished runs below some folders; no network is run.

    Args:
        folders: searched for records.
        out: gets NAME.csv and NAME.png (or NAME-PART.png) for each figure and table, ``index.html``, and a list of
            these. Files of an earlier report there that this one does not make are deleted, if they are as it left
            them.

    Returns:
        Your runs, then what there was enough for, in the paper's order. A part that fails is left out, with a
        warning.

    Raises:
        ValueError: there are no finished runs, or `out` holds a file of such a name that no report made; nothing
            was written then.
        OSError: `out` cannot be written.
    """
    folders = list(folders)
    where = ", ".join(map(str, folders))
    runs = read_runs(folders)
    if not runs:
        raise ValueError(f"no finished runs below {where}; make some with: python -m src.train -m seed=0,1,2")
    sections, shown, failed = [], [], []
    files: dict[str, bytes] = {}
    for name, make in {"runs": your_runs, **SECTIONS}.items():
        try:
            if (section := make(runs)) is None:
                continue
            made, content = _drawn(section)
        except Exception as error:  # whatever a record of others makes a figure do
            log.warning("%s is left out: %s", name, _in_one_line(error))
            failed.append(name)
            continue
        sections.append(section)
        shown.append(content)
        files |= made
    if not sections:
        raise ValueError(
            f"nothing can be shown of the {len(runs)} finished runs below {where}; see the lines above"
        )
    made_names = {section.name for section in sections}
    missing = [name for name in SECTIONS if name not in made_names and name not in failed]
    page = _page().render(shown=shown, missing=missing, failed=failed, runs=len(runs))
    replace_files(out, {**files, PAGE: page.encode()}, _OWN)
    return sections


def _drawn(section: Section) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A section's files by name, and what the page shows of it."""
    files = {f"{section.name}.csv": as_csv(section.rows).encode(errors="backslashreplace")}
    pictures = {}
    for name, figure in section.figures.items():
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd names, too long for a picture or without a glyph
            figure.savefig(png, format="png", dpi=DPI)
        files[f"{name}.png"] = png.getvalue()
        pictures[name] = base64.b64encode(png.getvalue()).decode()
    if odd := [name for name in files if not _OWN.fullmatch(name)]:
        raise ValueError(f"{odd[0]} is not named after a part of the report")
    header, body = columns(section.rows)
    said = ("name", "title", "caption", "seeds", "convention", "notes", "command", "commands")
    shown = {key: getattr(section, key) for key in said}
    return files, {**shown, "pictures": pictures, "header": header, "body": body}


def _page() -> jinja2.Template:
    def one_line(value: object) -> object:
        return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=one_line)
    return environment.from_string(resources.files("worstcase.report").joinpath("page.html.jinja").read_text())


def _in_one_line(error: Exception) -> str:
    return cut(visible(" ".join(f"{type(error).__name__}: {error}".split())), 300)
