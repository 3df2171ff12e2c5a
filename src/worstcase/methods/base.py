"""What every training method shares; a method adds its training loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from worstcase.crossbar import Crossbar


class Method(L.LightningModule):
    """Trains the network of a crossbar with automatic optimisation.

    Args:
        crossbar: the network with its th_g.
        num_classes: of the data.
        optimizer: from parameters to an optimiser.
        scheduler: from that optimiser to a learning rate schedule, stepped once an epoch.
        monitor: the metric, higher is better, whose best epoch is kept: ``val/accuracy`` or
            ``val/worst_case_accuracy``.
    """

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        num_classes: int,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], Any] | None = None,
        monitor: str = "val/accuracy",
    ) -> None:
        super().__init__()
        self.crossbar = crossbar
        self.monitor = monitor
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self._optimizer, self._scheduler = optimizer, scheduler

    @abstractmethod
    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of one batch, a scalar; this is what makes a method."""

    def forward(self, images: Tensor) -> Tensor:
        return self.crossbar(images)

    def on_train_start(self) -> None:
        """A pass in eval mode may come first: quantised outputs get their first ranges from one batch."""
        outputs = self.crossbar.outputs
        if outputs is not None and outputs.ranges.isnan().any():
            assert self.trainer.train_dataloader is not None
            self.crossbar.calibrate(islice(self.trainer.train_dataloader, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.training_loss(*batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}): "
                + self._cause(batch[0])
            )
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.val_accuracy(self(images), labels)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, on_step=False, on_epoch=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_accuracy(self(images), labels)
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = self._optimizer(p for p in self.parameters() if p.requires_grad)
        if self._scheduler is None:
            return optimizer
        return [optimizer], [self._scheduler(optimizer)]

    def _cause(self, images: Tensor) -> str:
        if not torch.isfinite(images).all():
            return "the batch has inputs that are not finite; check the data"
        for name, tensor in self.crossbar.net.state_dict().items():
            if not torch.isfinite(tensor).all():
                return f"{name} became not finite; lower the learning rate (model.optimizer.lr)"
        return "the logits or the loss overflowed; lower the learning rate (model.optimizer.lr)"
