"""Progress of long work: a bar on a terminal or in a notebook, and a plain line every few seconds elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
Show = Callable[[float, float, float], None]


@contextmanager
def progress_bar(name: str, *, enabled: bool = True) -> Iterator[Show]:
    """Show the progress of an attack. Yields a function of passes done, passes expected, and lowest accuracy."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda passes, total, accuracy: None
    elif console.is_terminal:
        with _on_terminal(name, console) as show:
            yield show
    elif console.is_jupyter:
        with _in_notebook(name) as show:
            yield show
    else:
        yield _in_log(name)


@contextmanager
def _on_terminal(name: str, console: Console) -> Iterator[Show]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("pass {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("lowest so far {task.fields[lowest]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=1, lowest="-")
        yield lambda passes, total, accuracy: bar.update(
            task, completed=passes, total=total, lowest=f"{accuracy:.2%}"
        )


@contextmanager
def _in_notebook(name: str) -> Iterator[Show]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's warning that without ipywidgets the bar is plain text
        from tqdm.auto import tqdm
    form = "{desc} {bar:20} pass {n}/{total}{postfix} [{elapsed}]"
    with tqdm(total=1, desc=name, leave=False, bar_format=form) as bar:

        def show(passes: float, total: float, accuracy: float) -> None:
            bar.total = round(max(passes, total))  # tqdm drops a total that is exceeded
            bar.set_postfix_str(f"lowest so far {accuracy:.2%}", refresh=False)
            bar.update(round(passes) - bar.n)

        yield show


def _in_log(name: str) -> Show:
    next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def show(passes: float, total: float, accuracy: float) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            log.info("%s: pass %.0f of %.0f, lowest so far %.2f %%", name, passes, total, 100 * accuracy)

    return show
