import logging
import time
from functools import partial

import pytest
from rich.console import Console

from worstcase import progress
from worstcase.progress import progress_bar


@pytest.fixture
def place(monkeypatch):
    """Makes progress think that it is on a terminal, in a notebook, or in neither."""

    def be(**options):
        monkeypatch.setattr(progress, "Console", partial(Console, **options))

    be(force_terminal=False, force_jupyter=False)
    return be


def work():
    with progress_bar("flwc") as show:
        show(1, 31, 0.99)
        time.sleep(0.15)  # tqdm draws at most ten times a second
        show(4, 31, 0.5)


def test_the_bar_on_a_terminal_is_erased_at_the_end(place, capsys):
    place(force_terminal=True)
    work()
    shown = capsys.readouterr().err
    assert "flwc" in shown and "pass 4/31" in shown and "lowest so far 50.00%" in shown
    assert shown.endswith("\x1b[2K")  # erased


def test_a_notebook_shows_a_bar(place, capsys):
    place(force_jupyter=True)
    work()
    shown = capsys.readouterr().err
    assert "flwc" in shown and "pass 4/31, lowest so far 50.00%" in shown


def test_a_notebook_shows_more_passes_than_expected(place, capsys):
    place(force_jupyter=True)
    with progress_bar("flwc") as show:
        time.sleep(0.15)
        show(33.4, 31, 0.5)
    assert "pass 33/33, lowest so far 50.00%" in capsys.readouterr().err


def test_other_output_gets_a_line_every_few_seconds(place, capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    work()
    assert not caplog.messages  # it was quick
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    work()
    assert "flwc: pass 4 of 31, lowest so far 50.00 %" in caplog.messages
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_when_progress_is_off(place, capsys, caplog):
    caplog.set_level(logging.INFO)
    place(force_terminal=True)
    with progress_bar("flwc", enabled=False) as show:
        show(4, 31, 0.5)
    assert capsys.readouterr().err == "" and not caplog.messages
