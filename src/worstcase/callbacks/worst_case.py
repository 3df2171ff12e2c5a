"""The worst case during training: on the validation split each epoch, on the test split at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from worstcase.attacks import Attack
from worstcase.attacks.base import Loader
from worstcase.checks import number
from worstcase.evaluation.evaluation import Evaluation, check_diagnosis, evaluate
from worstcase.methods import Method


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
        check_diagnosis(diagnosis)
        if thgs is not None and (isinstance(thgs, str) or not isinstance(thgs, Sequence) or not thgs):
            raise ValueError(f"thgs={thgs}: must be a list of one or more, or None for the crossbar's own")
        for thg in thgs or ():
            number("thgs", thg, low=0)
        kinds = {type(attack) for attack in attacks}
        self.attacks = [*attacks, *([besides] if besides is not None and type(besides) not in kinds else [])]
        self.seed, self.thgs, self.diagnosis = seed, thgs, diagnosis
        self.evaluation: Evaluation | None = None

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self.evaluation = evaluate(
            pl_module.crossbar,
            _loader(trainer.test_dataloaders),
            self.attacks,
            thgs=self.thgs,
            diagnosis=self.diagnosis,
            seed=self.seed,
        )
        pl_module.log("test/attacked_accuracy", self.evaluation.attacked_accuracy)


def _loader(loaders: Any) -> Loader:
    if isinstance(loaders, list | tuple | dict):
        raise ValueError("the worst case is over one reference set: give the trainer one loader, not several")
    return loaders
