"""All figures and tables that finished runs allow, as PNG, CSV and one HTML page that needs no other file."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

import jinja2

from worstcase.report import attacks, training, worst_chip
from worstcase.report.rows import Run, columns, read_runs, write_csv
from worstcase.report.section import Section

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


def write_report(folders: Iterable[Path], out: Path) -> list[Section]:
    """Write the report of the finished runs below some folders; no network is run.

    Args:
        folders: searched for records.
        out: gets NAME.csv and NAME.png (or NAME-PART.png) for each figure and table, and ``index.html``. Those
            files of an earlier report there that this one does not make are deleted.

    Returns:
        What there was enough for, in the paper's order.

    Raises:
        ValueError: there are no finished runs, or no figure or table can be made of them.
    """
    folders = list(folders)
    where = ", ".join(map(str, folders))
    runs = read_runs(folders)
    if not runs:
        raise ValueError(f"no finished runs below {where}; make some with: python -m src.train -m seed=0,1,2")
    sections = [section for make in SECTIONS.values() if (section := make(runs)) is not None]
    if not sections:
        raise ValueError(f"the {len(runs)} finished runs below {where} are of no figure or table of the paper")
    out.mkdir(parents=True, exist_ok=True)
    _delete_earlier(out)
    shown = []
    for section in sections:
        write_csv(section.rows, out / f"{section.name}.csv")
        pictures = {}
        for name, figure in section.figures.items():
            figure.savefig(out / f"{name}.png", dpi=DPI)
            pictures[name] = base64.b64encode((out / f"{name}.png").read_bytes()).decode()
        header, body = columns(section.rows)
        shown.append({"section": section, "pictures": pictures, "header": header, "body": body})
    made = {section.name for section in sections}
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        resources.files("worstcase.report").joinpath("page.html.jinja").read_text()
    )
    page = template.render(shown=shown, missing=[name for name in SECTIONS if name not in made], runs=len(runs))
    (out / PAGE).write_text(page)
    return sections


def _delete_earlier(out: Path) -> None:
    """Delete the page of an earlier report and the files that it shows."""
    page = out / PAGE
    if page.is_file():
        for kind, name in re.findall(r'<(section|img) id="(?:picture-)?([\w.-]+)"', page.read_text()):
            (out / f"{name}.{'csv' if kind == 'section' else 'png'}").unlink(missing_ok=True)
        page.unlink()
