"""The commands as a user gives them, in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).parent.parent
_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(
    ["lightning", "torchvision", "matplotlib.figure", "hydra", "wandb", "safetensors.torch"]
)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, so that results do not depend on the machine's cores; no login, no data folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WORSTCASE_DATA": "no-such-folder"}


def run(
    *arguments: object,
    fails: bool = False,
    before: tuple | None = None,
    killed_by: tuple | None = None,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository; it must succeed, or fail, as said.

    Args:
        arguments: the module and its words.
        fails: it must end with a non-zero exit code.
        before: a function, with its arguments, that is called in the process before the command.
        killed_by: the same of one that has it killed.
        variables: of its environment besides those of `environment`.

    Its process is forked from one that has imported the large packages, which takes longer than most commands.
    """
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _forked.Process(
            target=_become, args=([str(a) for a in arguments], out, err, before or killed_by, variables or {})
        )
        process.start()
        process.join(timeout=300)
        if process.exitcode is None:
            process.kill()
        done = subprocess.CompletedProcess(arguments, process.exitcode or 0, out.read_text(), err.read_text())
    assert process.exitcode is not None, f"not done after 300 s: {done.stderr}"
    assert (done.returncode != 0) == (fails or killed_by is not None), done.stdout + done.stderr
    return done


def _become(arguments: list[str], out: Path, err: Path, before: tuple | None, variables: dict[str, str]) -> None:
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(REPOSITORY)
    os.environ.update(environment() | variables)
    import torch

    torch.set_num_threads(1)
    sys.argv = arguments
    sys.path.insert(0, str(REPOSITORY))
    if before:
        before[0](*before[1:])
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Content and time of every file below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def without_times(content: dict) -> dict:
    """A record but for what differs from run to run: durations."""
    content = {key: value for key, value in content.items() if key != "train_seconds"}
    content["attacks"] = [{k: v for k, v in found.items() if k != "seconds"} for found in content["attacks"]]
    return content
