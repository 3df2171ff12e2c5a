"""Attacks in a training run: on the validation split after each epoch, on the test split at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging

from worstcase.attacks import Attack
from worstcase.attacks.base import SEARCH_DTYPES, check_attack, check_parameters
from worstcase.batches import Loader
from worstcase.checks import choice
from worstcase.evaluation.evaluate import CERTIFICATES, DIAGNOSES, evaluate
from worstcase.evaluation.evaluation import Evaluation
from worstcase.methods import Method


class WorstCasePerEpoch(L.Callback):
    """Attacks the validation split after each epoch and logs ``val/attacked_accuracy``, 0..1.

    Args:
        attack: the attack.
        seed: of the attack's random draws, the same in each epoch.

    Raises:
        ValueError: it comes after a callback that averages weights, whose average is gone by then.
    """

    def __init__(self, attack: Attack, seed: int = 0) -> None:
        check_attack(attack)
        self.attack, self.seed = attack, seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks[: callbacks.index(self)]:
            if isinstance(callback, WeightAveraging):
                raise ValueError(
                    f"callbacks: put WorstCasePerEpoch before {type(callback).__name__}, else it attacks other "
                    "weights than the average, which is validated and kept"
                )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, Method)
        found = self.attack(pl_module.crossbar, _loader(trainer.val_dataloaders), seed=self.seed, progress=False)
        pl_module.log("val/attacked_accuracy", found.accuracy, prog_bar=True)


class WorstCaseAtTest(L.Callback):
    """Evaluates the network on the test split; logs the lowest accuracy found, ``test/attacked_accuracy``, 0..1.

    The attribute ``evaluation`` keeps the `Evaluation`.

    Args:
        attacks: the attacks, run in this order. Values of a mapping that are None are skipped.
        seed: of the attacks' random draws.
        diagnosis: ``short`` or ``full`` explains the worst chip found; None does not.
        certificate: what proves a bound that no chip is below, or None; see `worstcase.evaluate`.
        search_dtype: ``bfloat16``, in which the attacks then follow gradients; see `worstcase.attacks.Attack`.
        folder: where attacks that can be resumed keep their state; of several processes, the first one's do.
    """

    def __init__(
        self,
        attacks: Sequence[Attack] | Mapping[str, Attack | None],
        seed: int = 0,
        diagnosis: str | None = None,
        certificate: str | None = "auto",
        search_dtype: str | None = None,
        folder: Path | None = None,
    ) -> None:
        choice("diagnosis", diagnosis, DIAGNOSES)
        choice("certificate", certificate, CERTIFICATES)
        choice("search_dtype", search_dtype, SEARCH_DTYPES)
        given = attacks.values() if isinstance(attacks, Mapping) else attacks
        self.attacks = [attack for attack in given if attack is not None]
        for attack in self.attacks:
            check_parameters(attack)
        self.seed, self.diagnosis, self.certificate = seed, diagnosis, certificate
        self.search_dtype, self.folder = search_dtype, folder
        self.evaluation: Evaluation | None = None

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Method)
        self.evaluation = evaluate(
            pl_module.crossbar,
            _loader(trainer.test_dataloaders),
            self.attacks,
            diagnosis=self.diagnosis,
            certificate=self.certificate,
            search_dtype=self.search_dtype,
            seed=self.seed,
            folder=self.folder if trainer.is_global_zero else None,
        )
        pl_module.log("test/attacked_accuracy", self.evaluation.attacked_accuracy)


def _loader(loaders: Any) -> Loader:
    if isinstance(loaders, list | tuple | dict):
        raise ValueError("the worst case needs one reference set: give the trainer one loader, not several")
    return loaders
