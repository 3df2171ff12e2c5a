"""The worst case during training: on the validation split each epoch, on the test split at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from worstcase.attacks import Attack
from worstcase.evaluation.evaluation import Evaluation, check_diagnosis, evaluate
from worstcase.methods import Method
from worstcase.task import Loader


class WorstCasePerEpoch(L.Callback):
    """Attacks the validation split after each epoch and logs ``val/attacked_accuracy``, 0..1.

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
        pl_module.log("val/attacked_accuracy", found.accuracy, prog_bar=True)


class WorstCaseAtTest(L.Callback):
    """Evaluates the network on the test split; logs the lowest accuracy found, ``test/attacked_accuracy``, 0..1.

    What was found is kept in ``evaluation``, an `Evaluation`.

    Args:
        attacks: run in this order; of a mapping, its values that are not None.
        seed: of what the attacks draw.
        diagnosis: ``short`` or ``full``, to explain the lowest found; None: not.
    """

    def __init__(
        self,
        attacks: Sequence[Attack] | Mapping[str, Attack | None],
        seed: int = 0,
        diagnosis: str | None = None,
    ) -> None:
        check_diagnosis(diagnosis)
        given = attacks.values() if isinstance(attacks, Mapping) else attacks
        self.attacks = [attack for attack in given if attack is not None]
        self.seed, self.diagnosis = seed, diagnosis
        self.evaluation: Evaluation | None = None

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self.evaluation = evaluate(
            pl_module.crossbar,
            _loader(trainer.test_dataloaders),
            self.attacks,
            diagnosis=self.diagnosis,
            seed=self.seed,
        )
        pl_module.log("test/attacked_accuracy", self.evaluation.attacked_accuracy)


def _loader(loaders: Any) -> Loader:
    if isinstance(loaders, list | tuple | dict):
        raise ValueError("the worst case is over one reference set: give the trainer one loader, not several")
    return loaders
