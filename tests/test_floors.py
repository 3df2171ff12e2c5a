"""Imports point down only: docs/design.md has the floors."""

import ast

import pytest
from commands import REPOSITORY

SOURCE = REPOSITORY / "src" / "worstcase"
FLOORS = [
    {"__main__"},
    {"app"},
    {"paper", "callbacks", "device", "leaderboard", "zoo"},
    {"report", "runs", "verify"},
    {"evaluation", "methods"},
    {"attacks", "certificate", "checkpoints", "data"},
    {"chip", "models", "objectives", "task"},
    {"batches", "checks", "digests", "found", "lock", "progress", "seeds", "text", "whole_file"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """The modules of the project, and Hydra's, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "worstcase":
            yield from (f"worstcase.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_from_its_own_floor_and_below(path):
    if path.parent == SOURCE and path.name == "__init__.py":
        return  # it hands on names of all floors, on first use
    for module in imported(path):
        package, _, rest = module.partition(".")
        if package in ("hydra", "omegaconf"):
            assert room(path) == "app", f"only the app knows Hydra, not {path}"
        if package == "worstcase" and rest and rest[0].islower():
            assert FLOOR[room(path)] <= FLOOR[rest.split(".")[0]], module
