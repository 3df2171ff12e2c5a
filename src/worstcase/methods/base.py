"""The base of all training methods; a method adds its training loss."""

from __future__ import annotations

import logging
import math
import random
from abc import abstractmethod
from collections.abc import Callable
from itertools import islice
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.classification import MulticlassAccuracy

from worstcase.attacks.gradient import gradient
from worstcase.batches import Inputs, inputs_and_labels, tensors_in
from worstcase.checks import check_seed, choice, number, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.chip.modes import evaluating
from worstcase.chip.noise import right_censored_gaussian
from worstcase.objectives import Objective, cross_entropy
from worstcase.seeds import derived_seed, seeded
from worstcase.task import check, decisions, refuse_one_hot

log = logging.getLogger(__name__)

CALMER = "lower the learning rate (lr=) or clip gradients (gradient_clip_val=1)"


class Method(L.LightningModule):
    """Trains the network of a crossbar with automatic optimisation.

    A run that is resumed after an epoch goes on as if it had never stopped, and all processes of a run
    perturb the weights alike: noise comes from `draws`, whose state only the seed, the epoch and the batch
    decide, and gradients that a perturbation follows are summed over the processes.

    Args:
        crossbar: the network with its th_g.
        num_classes: of the data.
        optimizer: from parameters to an optimiser.
        scheduler: from that optimiser to a learning rate schedule, stepped once an epoch; or to Lightning's dict
            of one, such as ``{"scheduler": schedule, "interval": "step"}``.
        monitor: the metric, higher is better, whose best epoch is kept: ``val/accuracy``,
            ``val/attacked_accuracy``, or what the method itself logs; None: the method's own, ``SELECTED_BY``.
        weight_clip: after each optimiser step the weights of each array are clamped to +- so many of their
            standard deviations (about zero), 1 or more. It lowers the full scale, and so the absolute bound
            of ``layer_max``. Arrays without a parameter of their own, such as those of weight norm, stay as they
            are: a warning names them. None: none is clamped.
        weight_clip_unit: ``deviation``, or ``weight``: weight_clip is a value in weight units, 0 or more.
        warm_up: for networks with batch norm, above all from published weights: the share of the training, 0..1,
            in which the training box is 0 and the network gets used to the clip. From then on batch norm keeps its
            running statistics, as it will on a chip. Clipping to deviations keeps the standard deviation of each
            array. The box grows from the end of the warm-up to the share `ramp` of the training; where that is no
            later, it is whole at once. None: no such phase.
        seed: of all that is drawn in training.

    Raises:
        ValueError: weight_clip, num_classes or seed out of range.
    """

    SELECTED_BY: ClassVar = "val/attacked_accuracy"

    draws: torch.Generator
    """Draws the noise of the present batch: the same in every process, and in a resumed run."""

    def __init__(
        self,
        crossbar: Crossbar,
        *,
        num_classes: int,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], Any] | None = None,
        monitor: str | None = None,
        weight_clip: float | None = None,
        weight_clip_unit: str = "deviation",
        warm_up: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_crossbar(crossbar)
        choice("weight_clip_unit", weight_clip_unit, ("deviation", "weight"))
        if weight_clip is not None:
            number("weight_clip", weight_clip, low=1 if weight_clip_unit == "deviation" else 0)
        if warm_up is not None:
            number("warm_up", warm_up, low=0, high=1)
        whole("num_classes", num_classes, least=2)
        check_seed("seed", seed)
        self.crossbar = crossbar
        self.monitor = monitor or self.SELECTED_BY
        self.weight_clip, self.weight_clip_unit, self.seed = weight_clip, weight_clip_unit, seed
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.warm_up = warm_up
        self._optimizer, self._scheduler = optimizer, scheduler
        self._steps = 0.0  # optimiser steps of the training, once it has begun; Lightning's -1 and inf: not known
        self.draws = seeded(seed, 0, 0)
        self._labels_fit = False
        self._epoch_seeded = -1
        if weight_clip is not None and (computed := crossbar.programmed().keys() - crossbar.arrays().keys()):
            names = ", ".join(sorted(computed))
            log.warning(
                "weight_clip=%g does not clip %s: the layer computes it anew in each pass", weight_clip, names
            )

    @abstractmethod
    def training_loss(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """The loss of one batch, a scalar; this is what makes a method."""

    def forward(self, inputs: Inputs) -> Any:
        return self.crossbar(inputs)

    # ---- what methods are made of

    def gradient(
        self, objective: Objective, perturbation: Perturbation, inputs: Inputs, labels: Tensor
    ) -> dict[str, Tensor]:
        """The gradient in a perturbation of an objective summed over the decisions of the batch.

        Summed over all processes too, so that each takes the same step. See `worstcase.attacks.gradient`.
        """
        found, _, _ = gradient(self.crossbar, objective, perturbation, inputs, labels)
        return {name: sum_over_processes(g) for name, g in found.items()}

    def cross_entropy(self, inputs: Inputs, labels: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        """The mean over the decisions of a batch, on the chip of a perturbation."""
        return F.cross_entropy(*decisions(self.crossbar(inputs, perturbation), labels))

    def loss_at(self, adversary: Perturbation, inputs: Inputs, labels: Tensor, *, clean: float) -> Tensor:
        """(1 - clean) x cross-entropy on the adversary's chip + clean x cross-entropy as programmed.

        The clean pass updates batch norm's running statistics and the adversary's uses them; without a
        clean pass (clean = 0) the adversary's is an ordinary training pass.
        """
        if clean == 0:
            return self.cross_entropy(inputs, labels, adversary)
        loss_c = self.cross_entropy(inputs, labels)
        with evaluating(self.crossbar):
            loss_p = self.cross_entropy(inputs, labels, adversary)
        return (1 - clean) * loss_p + clean * loss_c

    def found_by_steps(self, box: Box, inputs: Inputs, labels: Tensor, *, steps: int, step: float) -> Perturbation:
        """The perturbation in a box that some sign steps up the cross-entropy of the batch find, from zero.

        A step is in units of the box's farther end, see `Box.reach`. The passes are made in eval mode.
        """
        found, size = box.zero(), box.scaled(step).reach
        with evaluating(self.crossbar):
            for _ in range(steps):
                box.step_(found, self.gradient(cross_entropy, found, inputs, labels), size)
        return found

    def training_box(self, factor: float, ramp: float, decades: float | None = None) -> Box:
        """The crossbar's box times a factor that grows over the first share `ramp` of the training.

        It grows evenly from 0, or by so many powers of ten, each of which takes the same time.
        """
        grown = self.grown(ramp)
        if decades is not None and not self._warms_up:
            grown = 10 ** (decades * (grown - 1))
        return self.crossbar.box.scaled(factor * grown)

    def grown(self, ramp: float) -> float:
        """What grows from 0, after the warm-up, to 1 at the share `ramp` of the training."""
        begins = self.warm_up or 0.0
        if begins == ramp == 0:
            return 1.0
        if self._warms_up:
            return 0.0
        return min(1.0, (self._done - begins) / (ramp - begins)) if ramp > begins else 1.0

    @property
    def _done(self) -> float:
        """The share of the training that is over; 1 where there is no trainer.

        Raises:
            ValueError: nobody knows how long the training is.
        """
        if not 0 <= self._steps < math.inf:
            raise ValueError(
                "the length of the training is not known, and ramp and warm_up are shares of it: set the "
                "trainer's max_steps, or its max_epochs and limit_train_batches, and one accumulate_grad_batches"
            )
        return self.global_step / self._steps if self._steps else 1.0

    @property
    def _warms_up(self) -> bool:
        return self.warm_up is not None and self._done < self.warm_up

    def in_weight_units(self, sigma: float | None) -> dict[str, Tensor]:
        """A standard deviation in units of the full scale as one in weight units; None: that of the devices."""
        if sigma is None:
            return self.crossbar.sigma()
        return {name: sigma * scale for name, scale in self.crossbar.full_scales().items()}

    def right_censored_noise(self, sigma: float | None, threshold: float) -> dict[str, Tensor]:
        """Noise of Eq. 11 on every array: sigma in units of the full scale, threshold in units of sigma."""
        scale = self.in_weight_units(sigma)
        return right_censored_gaussian(self.crossbar.programmed(), scale, self.draws, threshold=threshold)

    def of_first_process(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in every process."""
        return self.trainer.strategy.broadcast(tensor) if self._trainer is not None else tensor

    # ---- Lightning's hooks

    def on_train_start(self) -> None:
        self._steps = float(self.trainer.estimated_stepping_batches)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler) and len(callback.scheduling) > 1:
                self._steps = math.inf  # Lightning counts by its first factor
        self._seed_this_epoch()
        outputs = self.crossbar.outputs
        if outputs is not None and outputs.ranges.isnan().any():
            # A pass in eval mode may come first: quantised outputs get their first ranges from one batch.
            assert self.trainer.train_dataloader is not None
            self.crossbar.calibrate(islice(self.trainer.train_dataloader, 1))
            self._seed_this_epoch()
        self._shuffle_as_in_this_epoch()

    def on_train_epoch_start(self) -> None:
        if self._epoch_seeded != self.current_epoch:  # the first epoch's batches have begun already
            self._seed_this_epoch()

    def _seed_this_epoch(self) -> None:
        """What a loader of yours draws, such as its order and augmentation, is the same in a resumed run."""
        self._epoch_seeded = self.current_epoch
        seed = derived_seed(self.seed, self.current_epoch, "data")
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        for loader in self._train_loaders:
            if getattr(loader, "persistent_workers", False):
                loader._iterator = None  # its workers would draw on; the next ones are seeded

    def _shuffle_as_in_this_epoch(self) -> None:
        """Lightning begins the first batches before they are seeded and their sampler knows which epoch it is."""
        for loader in self._train_loaders:
            _set_sampler_epoch(loader, self.current_epoch)
        fetcher = self.trainer.fit_loop._data_fetcher
        assert fetcher is not None
        iter(fetcher)

    @property
    def _train_loaders(self) -> list[Any]:
        combined = self.trainer.fit_loop._combined_loader
        assert combined is not None
        return combined.flattened

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, labels = inputs_and_labels(batch)
        place = (self.seed, self.current_epoch, batch_idx)
        self.draws = seeded(*place, device=self.device)
        torch.manual_seed(derived_seed(*place, "process", self.global_rank))  # for dropout
        if self.warm_up is not None and not self._warms_up:
            for module in self.crossbar.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self._check_labels(inputs, labels)
        try:
            loss = self.training_loss(inputs, labels)
        except IndexError:  # of a label that is no class
            self._labels_fit = False
            self._check_labels(inputs, labels)
            raise
        except (RuntimeError, ValueError) as error:  # an attack refuses what is not finite
            if "more than 1 value per channel" in str(error):
                raise ValueError(
                    f"batch {batch_idx} has one sample, from which batch norm cannot learn: choose another "
                    "batch_size, or drop_last=True in a loader of yours"
                ) from None
            if not self._not_finite(inputs):
                raise
            loss = torch.tensor(torch.nan)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            made = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"{type(self).__name__}.training_loss: must return a tensor of one value, not {made}")
        if not torch.isfinite(loss):
            cause = self._not_finite(inputs) or f"the logits or the loss overflowed; {CALMER}"
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.global_step} (epoch {self.current_epoch}): {cause}"
            )
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True)
        return loss

    @torch.no_grad()
    def _check_labels(self, inputs: Inputs, labels: Tensor) -> None:
        """Refuse labels that would teach something else; those of the first batch by all checks."""
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            raise ValueError(
                "soft training labels (smoothed, or mixed with others): give the number of each class"
            )
        if not self._labels_fit:
            with evaluating(self.crossbar):
                refuse_one_hot([check(self(inputs), labels)])
            torch.clear_autocast_cache()  # its casts were made without gradients
            self._labels_fit = True

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.weight_clip is not None:
            self._clip(self.weight_clip)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = inputs_and_labels(batch)
        self.val_accuracy(*decisions(self(inputs), labels))
        self.log("val/accuracy", self.val_accuracy, prog_bar=True, on_step=False, on_epoch=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        inputs, labels = inputs_and_labels(batch)
        self.test_accuracy(*decisions(self(inputs), labels))
        self.log("test/accuracy", self.test_accuracy, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("no parameter of the network requires a gradient, so there is nothing to train")
        optimizer = self._optimizer(trained)
        if self._scheduler is None:
            return optimizer
        schedule = self._scheduler(optimizer)
        if isinstance(schedule["scheduler"] if isinstance(schedule, dict) else schedule, ReduceLROnPlateau):
            raise ValueError(
                "scheduler: ReduceLROnPlateau follows a metric, whose last value a resumed training does not "
                "know; take one of steps or epochs, such as CosineAnnealingLR"
            )
        return [optimizer], [schedule]

    @torch.no_grad()
    def _clip(self, limit: float) -> None:
        for weight in self.crossbar.arrays().values():
            if weight.requires_grad:  # what is frozen stays as it is
                before = weight.square().mean().sqrt()
                in_deviations = self.weight_clip_unit == "deviation"
                largest = limit * before.item() if in_deviations else limit
                weight.clamp_(-largest, largest)
                if in_deviations and self.warm_up is not None:  # batch norm would hide that they shrink
                    weight.mul_(before / weight.square().mean().sqrt().clamp_min(torch.finfo(weight.dtype).tiny))

    def _not_finite(self, inputs: Inputs) -> str:
        if not all(bool(torch.isfinite(t).all()) for t in tensors_in(inputs)):
            return "the batch has inputs that are not finite; check the data"
        for name, tensor in self.crossbar.net.state_dict().items():
            if not torch.isfinite(tensor).all():
                if not self.global_step:
                    return f"{name} is not finite before the first step; give the network other weights"
                return f"{name} became not finite; {CALMER}"
        return ""


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum over the processes that train together."""
    if distributed.is_available() and distributed.is_initialized():
        tensor = tensor.contiguous()  # the sum goes by memory, which another process may have laid out otherwise
        distributed.all_reduce(tensor)
    return tensor
