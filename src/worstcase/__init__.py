"""Worst-case accuracy of neural networks on compute-in-memory accelerators.

Names are imported on first use, so that the parts that need no PyTorch start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worstcase import attacks as attacks
    from worstcase.attacks import AttackResult as AttackResult
    from worstcase.chip.crossbar import Crossbar as Crossbar
    from worstcase.evaluation.evaluation import Evaluation as Evaluation
    from worstcase.evaluation.evaluation import evaluate as evaluate
    from worstcase.report.frame import results_frame as results_frame
    from worstcase.runs import load_run as load_run

_MODULE_OF = {
    "Crossbar": "worstcase.chip.crossbar",
    "AttackResult": "worstcase.attacks",
    "Evaluation": "worstcase.evaluation.evaluation",
    "evaluate": "worstcase.evaluation.evaluation",
    "load_run": "worstcase.runs",
    "results_frame": "worstcase.report.frame",
}

__all__ = ["AttackResult", "Crossbar", "Evaluation", "attacks", "evaluate", "load_run", "results_frame"]


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("worstcase.attacks")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'worstcase' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
