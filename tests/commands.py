"""The commands as a user gives them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def environment() -> dict[str, str]:
    """One thread, so that results do not depend on the machine's cores; no login, no data folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WORSTCASE_DATA": "no-such-folder"}


def run(*arguments: object, fails: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command from the repository; it must succeed, or fail, as said."""
    done = subprocess.run(
        command(*arguments), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def without_times(content: dict) -> dict:
    """A record but for what differs from run to run: durations."""
    content = {key: value for key, value in content.items() if key != "train_seconds"}
    content["attacks"] = [{k: v for k, v in found.items() if k != "seconds"} for found in content["attacks"]]
    return content
