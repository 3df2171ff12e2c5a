"""The console script: ``worstcase train`` is ``python -m src.train`` in any folder."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path

from worstcase.app.doors import DOOR

COMMANDS = {
    "train": "train a network, attack it, and record the lowest accuracy found",
    "evaluate": "attack what a training left, or weights of your own",
    "tolerance": "how tight write-verify has to be for an accuracy, and what that costs",
    "report": "one page of your runs, and the paper's figures and tables",
    "status": "what is finished, failed, begun or missing",
    "device": "from write-verify's tolerance to th_g, and its cost in pulses",
}
USAGE = "usage: worstcase COMMAND [SETTING=VALUE ...]; --help after a command shows its settings\n\n" + "".join(
    f"  {name:<10} {what}\n" for name, what in COMMANDS.items()
)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name}\n{USAGE}")
    os.environ[DOOR] = "1"
    sys.argv[:2] = [f"worstcase {name}"]
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, for net=module:callable
    home = "worstcase.device" if name == "device" else f"worstcase.app.{name}"
    import_module(home).main()
