"""Progress of training as plain lines, for output that is not a terminal."""

from __future__ import annotations

import logging
import time

import lightning as L

log = logging.getLogger(__name__)


class EpochLines(L.Callback):
    """Logs one plain line per epoch."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        accuracies = [
            f"{name.removeprefix('val/').replace('_', ' ')} {value:.2%}"
            for name, value in metrics.items()
            if name.startswith("val/") and self._validated
        ]
        log.info(
            "epoch %d%s: %s%s%.1f s",
            trainer.current_epoch + 1,
            "" if trainer.max_epochs == -1 else f" of {trainer.max_epochs}",
            f"loss {metrics['train/loss']:.4f}, " if "train/loss" in metrics else "",
            f"validation {', '.join(accuracies)}, " if accuracies else "",
            time.monotonic() - self._started,
        )
