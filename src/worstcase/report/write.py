"""Writes the report: PNG and CSV files, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from worstcase.report.files import replace_files
from worstcase.report.frame import results_frame
from worstcase.report.rows import as_csv, columns
from worstcase.report.section import Section
from worstcase.report.your_runs import your_runs
from worstcase.text import cut, visible

log = logging.getLogger(__name__)

PAGE = "index.html"
DPI = 150
Sections = Mapping[str, Callable[[pd.DataFrame], Section | None]]
"""By name, functions that make a section from `worstcase.results_frame`, or None if results for it are missing."""


def write_report(folders: Iterable[Path], out: Path, sections: Sections) -> list[Section]:
    """Write the report on the finished runs below some folders. No network is run.

    Args:
        folders: searched for records.
        out: the folder for NAME.csv and NAME.png (or NAME-PART.png) of each figure and table, ``index.html``, and
            a list of these. Files of an earlier report that are not made again are deleted, unless they were
            changed.
        sections: the sections after 'Your runs', such as `worstcase.paper.SECTIONS`.

    Returns:
        'Your runs', then each section that there are results for, in order. A section that fails is left out,
        with a warning.

    Raises:
        ValueError: there are no finished runs, or `out` holds a file with one of these names that no report made.
            Nothing was written.
        OSError: `out` cannot be written to.
    """
    folders = list(folders)
    where = ", ".join(map(str, folders))
    results = results_frame(folders)
    if results.empty:
        raise ValueError(f"no finished runs below {where}")
    count = results.folder.nunique()
    makers: Sections = {"runs": your_runs, **sections}
    names = "|".join(makers)
    own = re.compile(rf"{re.escape(PAGE)}|({names})\.csv|({names})(-[a-z0-9_]+)*\.png")
    made, shown, failed = [], [], []
    files: dict[str, bytes] = {}
    for name, make in makers.items():
        try:
            if (section := make(results)) is None:
                continue
            drawn, content = _drawn(section, own)
        except Exception as error:  # a foreign record can make a figure fail in any way
            log.warning("%s is left out: %s", name, _in_one_line(error))
            failed.append(name)
            continue
        made.append(section)
        shown.append(content)
        files |= drawn
    if not made:
        raise ValueError(f"none of the {count} finished runs below {where} can be shown; see the lines above")
    missing = [name for name in sections if name not in failed and name not in {section.name for section in made}]
    page = _page().render(shown=shown, missing=missing, failed=failed, runs=count)
    replace_files(out, {**files, PAGE: page.encode()}, own)
    return made


def _drawn(section: Section, own: re.Pattern[str]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A section's files by name, and the values that the page shows."""
    files = {f"{section.name}.csv": as_csv(section.rows).encode(errors="backslashreplace")}
    pictures = {}
    for name, figure in section.figures.items():
        png = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a name is too long for the picture, or has no glyph
            figure.savefig(png, format="png", dpi=DPI)
        files[f"{name}.png"] = png.getvalue()
        pictures[name] = base64.b64encode(png.getvalue()).decode()
    if odd := [name for name in files if not own.fullmatch(name)]:
        raise ValueError(f"{odd[0]} is not named after a part of the report")
    header, body = columns(section.rows)
    fields = ("name", "title", "caption", "seeds", "convention", "notes", "sweeps", "commands")
    shown = {key: getattr(section, key) for key in fields}
    return files, {**shown, "pictures": pictures, "header": header, "body": body}


def _page() -> jinja2.Template:
    def one_line(value: object) -> object:
        return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=one_line)
    return environment.from_string(resources.files("worstcase.report").joinpath("page.html.jinja").read_text())


def _in_one_line(error: Exception) -> str:
    return cut(visible(" ".join(f"{type(error).__name__}: {error}".split())), 300)
