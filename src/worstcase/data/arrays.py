"""Arrays in one file, of NumPy or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worstcase.data.files import PARTS, FileDataModule

INPUTS = ("{}_inputs", "{}_images", "x_{}")  # names of a part's arrays
LABELS = ("{}_labels", "y_{}")


class ArraysDataModule(FileDataModule):
    """Arrays in one file: NumPy's .npz, or a dict of tensors saved by PyTorch.

    It has ``test_inputs`` and ``test_labels``, and for training ``train_inputs`` and ``train_labels``; with
    ``val_inputs`` and ``val_labels`` nothing is taken from the training data for validation. Also read are
    ``x_train``, ``y_train``, ``train_images`` and the like; ``inputs`` and ``labels`` alone are test data.

    Inputs are as the network takes them, images (N, channels, height, width). Of uint8 they become 0..1; floats
    become float32; other whole numbers stay, such as tokens. Labels are (N,), or of any shape that
    `worstcase.task` knows; of (N, 1) they become (N,). Inputs of all parts are of one of these types.

    Args:
        file: .npz, .pt or .pth.
        digest: that the file must have; None: any.
        options: see `SampleDataModule`; num_classes must be given.
    """

    def __init__(self, *, file: str, digest: str | None = None, **options: Any) -> None:
        super().__init__({"file": file}, digest=digest, **options)

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        file = self.files["file"]
        content = _arrays(file)
        parts = {}
        for part in PARTS:
            names = [[name.format(part) for name in spellings] for spellings in (INPUTS, LABELS)]
            found = [[name for name in spellings if name in content] for spellings in names]
            if twice := [some for some in found if len(some) > 1]:
                raise ValueError(f"{file} has both {' and '.join(twice[0])}; keep one")
            if all(found):
                parts[part] = content[found[0][0]], content[found[1][0]]
            elif any(found):
                missing = names[bool(found[0])][0]
                raise ValueError(f"{file} has {(found[0] or found[1])[0]}, but no {missing}")
        if not parts and {"inputs", "labels"} <= content.keys():
            parts["test"] = content["inputs"], content["labels"]
        if "test" not in parts:
            raise ValueError(f"{file} has {', '.join(content) or 'nothing'}; it needs test_inputs and test_labels")
        kinds = {part: _kind(x) for part, (x, _) in parts.items()}
        if len(set(kinds.values())) > 1:
            said = ", ".join(f"{kind} in {part}" for part, kind in kinds.items())
            raise ValueError(f"{file} has inputs of different types, and uint8 alone become 0..1: {said}")
        return {part: (_inputs(x), _labels(y)) for part, (x, y) in parts.items()}


def _arrays(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. Nothing in it is executed."""
    try:
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as content:
                return {name: torch.from_numpy(content[name]) for name in content.files}
        if file.suffix not in (".pt", ".pth"):
            raise ValueError("it must be .npz, .pt or .pth")
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make the readers fail in any way
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise ValueError(f"cannot read the arrays of {file}: {reason}") from None
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"cannot read the arrays of {file}: it must hold a dict of tensors")
    return {str(name): tensor for name, tensor in held.items()}


def _kind(inputs: Tensor) -> str:
    if inputs.is_floating_point():
        return "floats"
    return "uint8" if inputs.dtype == torch.uint8 else "whole numbers"


def _inputs(inputs: Tensor) -> Tensor:
    if inputs.dtype == torch.uint8:
        return inputs.float().div_(255)
    return inputs.float() if inputs.is_floating_point() else inputs


def _labels(labels: Tensor) -> Tensor:
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    return labels if labels.is_floating_point() else labels.long()
