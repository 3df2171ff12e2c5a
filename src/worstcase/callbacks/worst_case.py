"""The worst case during training: on the validation split each epoch, on the test split at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from worstcase.attacks import Attack, WorstCase
from worstcase.attacks.base import Loader
from worstcase.diagnosis import diagnose
from worstcase.methods import Method


class WorstCasePerEpoch(L.Callback):
    """Attacks the validation split after each epoch and logs ``val/worst_case_accuracy``, 0..1.

    Args:
        attack: the attack.
        seed: of what it draws, the same in each epoch.
    """

    def __init__(self, attack: Attack, seed: int = 0) -> None:
        self.attack, self.seed = attack, seed

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Method)
        found = self.attack(pl_module.crossbar, _loader(trainer.val_dataloaders), seed=self.seed, progress=False)
        pl_module.log("val/worst_case_accuracy", found.accuracy, prog_bar=True)


class WorstCaseAtTest(L.Callback):
    """Attacks the test split and keeps what each attack found; logs the lowest ``test/worst_case_accuracy``, 0..1.

    Args:
        attacks: run in this order.
        seed: of what the attacks draw.
        thgs: attacked, each attack at a larger one starting from what it found at the next smaller; None: the
            crossbar's own.
        diagnosis: ``short`` or ``full``, to explain the lowest found at the largest th_g; None: not.
        besides: run too, lest a network passes for safe because an attack failed, unless one of its kind is there.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        seed: int = 0,
        thgs: Sequence[float] | None = None,
        diagnosis: str | None = None,
        besides: Attack | None = None,
    ) -> None:
        if diagnosis not in (None, "short", "full"):
            raise ValueError(f"diagnosis={diagnosis}: must be short or full")
        kinds = {type(attack) for attack in attacks}
        self.attacks = [*attacks, *([besides] if besides is not None and type(besides) not in kinds else [])]
        self.seed, self.thgs, self.diagnosis = seed, thgs, diagnosis
        self.found: list[WorstCase] = []
        self.explained: dict[str, Any] | None = None

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        loader = _loader(trainer.test_dataloaders)
        crossbar = pl_module.crossbar
        thgs = sorted(self.thgs or [crossbar.thg])
        self.found = []
        for attack in self.attacks:
            start = None
            for thg in thgs:
                with crossbar.bounded_by(thg):
                    self.found.append(attack(crossbar, loader, start=start, seed=self.seed))
                start = self.found[-1].perturbation
        if self.diagnosis:
            lowest = min((one for one in self.found if one.thg == thgs[-1]), key=lambda one: one.accuracy)
            full = self.diagnosis == "full"
            with crossbar.bounded_by(thgs[-1]):
                self.explained = diagnose(crossbar, loader, lowest.perturbation, full=full, progress=False)
        pl_module.log("test/worst_case_accuracy", min(found.accuracy for found in self.found))


def _loader(loaders: Any) -> Loader:
    if isinstance(loaders, list | tuple | dict):
        raise ValueError("the worst case is over one reference set: give the trainer one loader, not several")
    return loaders
