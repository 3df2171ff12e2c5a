"""The beginning and the end of every command: its words, its signals, its exit code."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from worstcase.app import naming, ranges, sweeps, threads
from worstcase.app.errors import JobFailed, in_one_line, not_a_choice
from worstcase.app.folders import check_place


def start(main: Callable[[], Any], words: Callable[[Sequence[str]], list[str]] = list) -> NoReturn:
    """Run a Hydra main; an error is one line and a non-zero exit code (HYDRA_FULL_ERROR=1 shows it whole).

    Args:
        main: takes the command line as `sys.argv` has it.
        words: from the words that were given to those that main is to take.
    """
    whole = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Waiting threads of GNU OpenMP sleep sooner: as fast alone, 6 times as fast beside two busy processes.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    threads.remember()
    os.environ.pop(sweeps.FAILURES, None)  # of a sweep, one of whose jobs has started this command
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them with a hint
    # Lightning takes a note of SIGTERM and lets an attack go on for hours, but calls a handler that it finds.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal cannot show ends no job
    if said := not_a_choice([word for word in sys.argv[1:] if "=[" in word]):  # Hydra would take both
        sys.exit(f"error: {said}")
    if "${" in str(Path.cwd()):  # Hydra would resolve it
        sys.exit(f"error: the folder {Path.cwd()} has ${{ in its name; rename it, or work in another")
    try:
        sys.argv[1:] = words(sys.argv[1:])
        for word in sys.argv[1:]:
            if re.search("[\ud800-\udfff]", word):  # such a byte, as Python reads it
                raise ValueError(f"{word}: has a byte that is not UTF-8, which no record holds; rename the path")
        main()
    except JobFailed:
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (HydraException, OmegaConfBaseException, BrokenExecutor, OSError, ValueError) as error:
        if whole:
            raise
        sys.exit(f"error: {in_one_line(error)}")
    finally:
        for line in sweeps.failures():
            print(line, file=sys.stderr)
    sys.exit(0)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """An error within ends the process with one line, before Hydra adds its own."""
    try:
        yield
    except (HydraException, OSError, ValueError) as error:
        sys.exit(f"error: {in_one_line(error)}")


class CheckBeforeRun(Callback):
    """Hydra callback: a single run's settings are checked before its folder is made."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with errors_in_one_line():  # Hydra would go on
            sweeps.check_jobs(config)
            sweeps.announce(config)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            ranges.check(naming.completed(config))
            check_place(Path(config.hydra.run.dir))
        except Exception as error:  # Hydra would go on
            sys.exit(f"error: {in_one_line(error)}")
