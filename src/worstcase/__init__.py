"""Worst-case accuracy of neural networks on compute-in-memory accelerators.

Names are imported on first use, so that the parts that need no PyTorch start at once.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Crossbar": "worstcase.crossbar",
    "WorstCase": "worstcase.attacks",
    "load_run": "worstcase.runs",
}

__all__ = ["Crossbar", "WorstCase", "attacks", "load_run"]


def __getattr__(name: str) -> Any:
    if name == "attacks":
        return import_module("worstcase.attacks")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'worstcase' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)
