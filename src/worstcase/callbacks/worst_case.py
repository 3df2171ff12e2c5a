"""The worst case during training: on the validation split each epoch, on the test split at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from worstcase.attacks import Attack, WorstCase
from worstcase.attacks.base import Loader
from worstcase.methods import Method


class WorstCasePerEpoch(L.Callback):
    """Attacks the validation split after each epoch and logs ``val/worst_case_accuracy``, 0..1."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Method)
        found = self.attack(pl_module.crossbar, _loader(trainer.val_dataloaders), progress=False)
        pl_module.log("val/worst_case_accuracy", found.accuracy, prog_bar=True)


class WorstCaseAtTest(L.Callback):
    """Attacks the test split and keeps what each attack found; logs the lowest ``test/worst_case_accuracy``, 0..1.

    Args:
        attacks: several kinds, lest a network passes for safe because one of them failed; of one kind, the first.
        seed: of what the attacks draw.
    """

    def __init__(self, attacks: Sequence[Attack], seed: int = 0) -> None:
        kinds: dict[type[Attack], Attack] = {}
        for attack in attacks:
            kinds.setdefault(type(attack), attack)
        self.attacks, self.seed = list(kinds.values()), seed
        self.found: list[WorstCase] = []

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        loader = _loader(trainer.test_dataloaders)
        self.found = [attack(pl_module.crossbar, loader, seed=self.seed) for attack in self.attacks]
        pl_module.log("test/worst_case_accuracy", min(found.accuracy for found in self.found))


def _loader(loaders: Any) -> Loader:
    if isinstance(loaders, list | tuple | dict):
        raise ValueError("the worst case is over one reference set: give the trainer one loader, not several")
    return loaders
