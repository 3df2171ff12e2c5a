"""Loading what a finished run trained."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from worstcase.crossbar import Crossbar
from worstcase.data import InMemoryDataModule
from worstcase.results import Record

CHECKPOINT = Path("checkpoints", "best.ckpt")


@dataclass(frozen=True)
class Run:
    """A finished training run: its crossbar (eval mode, th_g can be set), its data, its record."""

    crossbar: Crossbar
    datamodule: InMemoryDataModule
    record: Record


def load_run(folder: str | Path, *, checkpoint: str | Path | None = None) -> Run:
    """Give back what a finished run trained.

    Only classes of ``worstcase`` and networks of ``torchvision.models`` are built, whatever the run's
    configuration says, and checkpoints are read as plain tensors: a foreign run executes no code.

    Args:
        folder: of a training run.
        checkpoint: weights to take instead of the run's best.

    Raises:
        FileNotFoundError: no run finished there, or the checkpoint is missing.
        ValueError: the folder holds something else, or the checkpoint cannot be read or belongs to
            another network.
    """
    folder = Path(folder)
    record = Record.load(folder)
    if record.kind != "train":
        raise ValueError(f"{folder} holds an evaluation, not a training run")
    config = record.config
    net = build(config["model"]["net"], nn.Module)
    load_weights(net, Path(checkpoint) if checkpoint else folder / CHECKPOINT)
    crossbar = Crossbar(
        net,
        config["thg"],
        full_scale=config["full_scale"],
        layers=config["layers"],
        exclude=config["exclude"],
    )
    return Run(crossbar.eval(), build(config["dataset"], L.LightningDataModule), record)


def build(config: Mapping[str, Any], kind: type) -> Any:
    """Build ``_target_`` with the other keys as arguments if it is one of ours or torchvision's.

    Raises:
        ValueError: it is anything else, or has a ``_target_`` within its arguments.
    """
    arguments = dict(config)
    target = str(arguments.pop("_target_", None))
    refused = (
        f"{target} is no {kind.__name__} of worstcase or torchvision.models, so it is not built from a record"
    )
    if not target.startswith(("worstcase.", "torchvision.models.")) or "_target_" in repr(arguments):
        raise ValueError(refused)
    try:
        found = resolve_name(target)
    except (ImportError, AttributeError):
        raise ValueError(refused) from None
    home = getattr(found, "__module__", "") + "."
    ours = home.startswith("worstcase.") and inspect.isclass(found) and issubclass(found, kind)
    torchvisions = home.startswith("torchvision.models.") and kind is nn.Module and callable(found)
    if not (ours or torchvisions):
        raise ValueError(refused)
    return found(**arguments)


def load_weights(net: nn.Module, file: Path) -> None:
    """Load a network's weights from a run's checkpoint or a plain state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or its tensors are not those of the network.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(
            f"cannot read the checkpoint {file}: it is truncated or holds more than tensors ({reason})"
        ) from None
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    prefix = "crossbar.net."
    if any(str(key).startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if problem := _mismatch(net.state_dict(), state):
        raise ValueError(f"the checkpoint {file} does not belong to this {type(net).__name__}: {problem}")
    net.load_state_dict(state)


def _mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Any]) -> str:
    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"missing {', '.join(sorted(missing))}")
    if unexpected := given.keys() - expected.keys():
        problems.append(f"unexpected {', '.join(sorted(map(str, unexpected)))}")
    problems += [
        f"{key} is {tuple(getattr(given[key], 'shape', ()))}, not {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in given and getattr(given[key], "shape", None) != tensor.shape
    ]
    text = "; ".join(problems)
    return text if len(text) < 400 else text[:400] + " ..."
