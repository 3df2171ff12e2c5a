"""How badly a neural network can fail on a compute-in-memory chip that passed write-verify.

`Crossbar` says which weights are in devices and how far they may deviate: by a number, or by the `Tolerance` and
the `DeviceMapping` of real devices. `evaluate` searches for the worst chip, and the `Evaluation` that it returns
says what was found and how far to trust it. `worstcase.attacks` has the attacks, `worstcase.methods` the training
methods, `worstcase.data` and `worstcase.models` the paper's data sets and networks. `load_run` loads what a
training left, `load` a published network, and `results_frame` returns all records as a table.
"""

# Names are imported on first use, so that the parts that need no PyTorch start fast.

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worstcase import attacks as attacks
    from worstcase.attacks import AttackResult as AttackResult
    from worstcase.chip.crossbar import Crossbar as Crossbar
    from worstcase.chip.mapping import DeviceMapping as DeviceMapping
    from worstcase.chip.tolerance import Tolerance as Tolerance
    from worstcase.chip.tolerance_file import load_tolerances as load_tolerances
    from worstcase.chip.tolerance_file import save_tolerances as save_tolerances
    from worstcase.evaluation.evaluate import evaluate as evaluate
    from worstcase.evaluation.evaluation import Evaluation as Evaluation
    from worstcase.report.frame import results_frame as results_frame
    from worstcase.runs import load_run as load_run
    from worstcase.verify.reprogram import reprogram as reprogram
    from worstcase.verify.search import tolerance as tolerance
    from worstcase.zoo import load as load

_MODULE_OF = {
    "Crossbar": "worstcase.chip.crossbar",
    "DeviceMapping": "worstcase.chip.mapping",
    "Tolerance": "worstcase.chip.tolerance",
    "load_tolerances": "worstcase.chip.tolerance_file",
    "save_tolerances": "worstcase.chip.tolerance_file",
    "AttackResult": "worstcase.attacks",
    "Evaluation": "worstcase.evaluation.evaluation",
    "evaluate": "worstcase.evaluation.evaluate",
    "load": "worstcase.zoo",
    "load_run": "worstcase.runs",
    "results_frame": "worstcase.report.frame",
    "reprogram": "worstcase.verify.reprogram",
    "tolerance": "worstcase.verify.search",
}

__all__ = [
    "AttackResult",
    "Crossbar",
    "DeviceMapping",
    "Evaluation",
    "Tolerance",
    "attacks",
    "evaluate",
    "load",
    "load_run",
    "load_tolerances",
    "reprogram",
    "results_frame",
    "save_tolerances",
    "tolerance",
]


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("worstcase.attacks")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'worstcase' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
