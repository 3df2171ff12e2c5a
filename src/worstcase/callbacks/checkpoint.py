"""Checkpoints of a run whose folder may be moved or copied before it resumes."""

from __future__ import annotations

import math
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but it finds its files by their names in its present folder.

    Lightning stores absolute paths. In another folder it forgets how good the best checkpoint was, and a worse
    one would replace it.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse, before the first step, a training that no validation would tell how good it is."""
        super().on_train_start(trainer, pl_module)
        batches = trainer.val_check_batch
        if self.monitor is None or not isinstance(batches, int):
            return
        if trainer.val_dataloaders is not None and not sum(trainer.num_val_batches):
            raise ValueError("the validation data are empty: one epoch is kept by its accuracy there")
        epoch, epochs_before = trainer.num_training_batches, (trainer.check_val_every_n_epoch or 1) - 1
        steps, first = trainer.max_steps, math.ceil(batches / trainer.accumulate_grad_batches)
        if isinstance(epoch, int):
            first += epochs_before * math.ceil(epoch / trainer.accumulate_grad_batches)
        if 0 < steps < first:
            raise ValueError(f"trainer.max_steps={steps}: raise it; the first validation is after {first}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(self.dirpath or "", Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {key: here(state_dict[key]) for key in paths}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath})


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then moves it there: until then the one before stays."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint that can be read without running code.

        Raises:
            ValueError: it cannot, as a callback's state is no plain value.
        """
        part = Path(f"{path}.part")
        try:
            super().save_checkpoint(checkpoint, part, storage_options)
            try:
                torch.load(part, map_location="cpu", mmap=True, weights_only=True)
            except UnpicklingError as error:
                held = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
                raise ValueError(
                    f"{Path(path).name} would hold a {held[1] if held else 'value'}, and reading that would run "
                    "code: let the state_dict of a callback of yours have numbers, strings and tensors alone"
                ) from None
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
