"""Attack a trained network, explain its worst chip, and record both: python -m src.evaluate."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from worstcase.app import naming, ranges, sweeps
from worstcase.app.doors import CONF, command
from worstcase.app.errors import instantiated
from worstcase.app.job import run_job
from worstcase.app.merging import merge
from worstcase.app.precision import warn_of_slow_bfloat16
from worstcase.app.pulses import shared_out
from worstcase.app.start import start
from worstcase.app.threads import use_threads
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import EVALUATIONS, Record, weights_of
from worstcase.whole_file import write_whole

if TYPE_CHECKING:
    from worstcase.attacks import Attack
    from worstcase.chip.crossbar import Crossbar
    from worstcase.data import ImageDataModule


log = logging.getLogger(__name__)
ORDER = "reprogram.safetensors"
"""By array, the place of each weight in the order in which to program a chip again: 0 is the first."""


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def _evaluate(cfg: DictConfig) -> float | None:
    return run_job("evaluate", evaluate, cfg)


def main() -> None:
    start(_evaluate, naming.naming_the_newest_run)


def evaluate(cfg: dict[str, Any], folder: Path) -> Record:
    """Attack the network as the settings say, and leave the record, perturbations and figures in the folder."""
    import worstcase
    from worstcase.evaluation.measured import read_chip

    if cfg["merge"]:
        merge(cfg, _siblings(cfg, folder), folder)
    subject = under_test(cfg)
    warn_of_slow_bfloat16(cfg, next(subject.crossbar.parameters()).device.type)
    if cfg["pulses"] is not None:
        subject.crossbar.thg = shared_out(cfg, subject.crossbar, subject.datamodule)
    # before the attacks, which an error would throw away
    again = _programmed_again(cfg, folder, subject) if cfg["reprogram"] is not None else None
    evaluation = worstcase.evaluate(
        subject.crossbar,
        subject.datamodule.test_dataloader(),
        [subject.attack],
        thgs=ranges.bounds(cfg) if isinstance(cfg["thg"], list) else None,
        chip=read_chip(Path(cfg["chip"])) if cfg["chip"] else None,
        chip_holds=cfg["chip_holds"],
        heldout=cfg["heldout"],
        diagnosis=cfg["diagnosis"],
        certificate=cfg["certificate"],
        search_dtype=cfg["search_dtype"],
        up_to=True,
        seed=cfg["seed"],
        folder=folder,
    )
    chip = {"chip_file": os.path.relpath(cfg["chip"], folder) if cfg["chip"] else None}
    result = evaluation.record(**described("evaluate", cfg, folder, subject), **chip)
    if again is not None:
        result.chip["again"] = again
    evaluation.save(folder, flagged(result, cfg, folder, subject))
    return result


def _programmed_again(cfg: dict[str, Any], folder: Path, subject: Subject) -> dict[str, Any]:
    """Leave the order in which to program the chip's weights again in the folder, and tell how many it takes."""
    from safetensors.torch import save

    import worstcase
    from worstcase.evaluation.measured import read_chip

    found = worstcase.reprogram(
        subject.crossbar,
        subject.datamodule.test_dataloader(),
        read_chip(Path(cfg["chip"])),
        cfg["reprogram"],
        chip_holds=cfg["chip_holds"],
        training=training_images(subject),
        seed=cfg["seed"],
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ORDER, save({name: rank.cpu().contiguous() for name, rank in found.rank.items()}))
    return {"to_keep": cfg["reprogram"], "accuracy": found.accuracy, "weights": found.weights, "file": ORDER}


def training_images(subject: Subject) -> Iterable[Any] | None:
    """The validation split, whose gradients tell which weights matter; None where there are no training data."""
    try:
        return subject.datamodule.val_dataloader()
    except FileNotFoundError as error:
        log.info("gradients are those of the images that are attacked: %s", error)
        return None


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and what its record says of it."""

    crossbar: Crossbar
    datamodule: ImageDataModule
    attack: Attack
    trained: Record | None
    dataset: str | None


def under_test(cfg: dict[str, Any]) -> Subject:
    """Build the network, data and attack of conf/under_test.yaml."""
    import torch

    from worstcase.attacks.base import check_parameters
    from worstcase.checkpoints import load_weights
    from worstcase.data import InMemoryDataModule
    from worstcase.runs import check_fit, dataset, make_crossbar, network

    trained = Record.load_training(Path(cfg["run"])) if cfg["run"] else None
    said = {**cfg, "thg": ranges.bounds(cfg)[-1]} if isinstance(cfg["thg"], list) else cfg
    crossbar = make_crossbar(network(trained.config if trained else {}, cfg["net"]), said)
    load_weights(crossbar, Path(cfg["checkpoint"] or weights_of(Path(cfg["run"]))))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    crossbar.to(device)
    chosen = HydraConfig.get().runtime.choices.get("dataset")
    # Hydra builds nothing that comes from a record
    datamodule = instantiated(cfg, "dataset") if chosen else dataset(cfg["dataset"])
    datamodule.prepare_data()
    if isinstance(datamodule, InMemoryDataModule):
        datamodule.device = device
    check_fit(crossbar, datamodule)
    use_threads(cfg, crossbar, datamodule)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        try:
            crossbar.calibrate(datamodule.val_dataloader())  # of the training data
        except FileNotFoundError as error:
            raise FileNotFoundError(f"model.activation_bits needs training data, to set ranges: {error}") from None
    attack = instantiated(cfg, "attack")
    check_parameters(attack)
    attack.check_classes(datamodule.num_classes)
    return Subject(crossbar, datamodule, attack, trained, chosen or (trained.dataset if trained else None))


def described(kind: str, cfg: dict[str, Any], folder: Path, subject: Subject) -> dict[str, Any]:
    """The fields of a record that only the command knows."""
    from worstcase.data import OwnDataModule

    trained, datamodule = subject.trained, subject.datamodule
    return {
        "data_digest": datamodule.digest() if isinstance(datamodule, OwnDataModule) else None,
        "source_run": os.path.relpath(cfg["run"], folder) if cfg["run"] else None,
        "command": command(kind),
        "sweep": sweeps.command(),
        "config": cfg,
        "method": trained.method if trained else None,
        "model": trained.model if trained else cfg["net"],
        "dataset": subject.dataset,
        "epochs": trained.epochs if trained else None,
    }


def flagged(record: Record, cfg: dict[str, Any], folder: Path, subject: Subject) -> Record:
    """The record, with flags where other evaluations of the run found less."""
    from worstcase.evaluation.flags import lower_elsewhere

    siblings = _siblings(cfg, folder)
    others = [other for _, other in finished_runs([siblings])] if siblings.name == EVALUATIONS else []
    trained = [subject.trained] if subject.trained else []
    record.flags += lower_elsewhere(record, others + trained)
    return record


def _siblings(cfg: dict[str, Any], folder: Path) -> Path:
    return Path(cfg["run"], EVALUATIONS) if cfg["run"] else folder.parent
