"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress_bar(name: str, *, enabled: bool = True) -> Iterator[Callable[[float, float, float], None]]:
    """Show how far an attack is: yields a function of passes done, passes expected, and lowest accuracy so far."""
    console = Console(stderr=True)
    if not enabled:
        yield lambda passes, total, accuracy: None
    elif console.is_terminal:
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
    else:
        next_line = time.monotonic() + SECONDS_BETWEEN_LINES

        def write_line(passes: float, total: float, accuracy: float) -> None:
            nonlocal next_line
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + SECONDS_BETWEEN_LINES
                log.info("%s: pass %.0f of %.0f, lowest so far %.2f %%", name, passes, total, 100 * accuracy)

        yield write_line
