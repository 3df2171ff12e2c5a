"""Attack what a training run left, explain the worst chip, and record both: python -m src.evaluate."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from src import cli, identity, schema
from worstcase.results import AttackRecord, Record, finished_runs, save_perturbations

RANDOM_VERTICES = 4  # that a single attack is compared with

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    cli.run_job("evaluate", evaluate, cfg)


def evaluate(cfg: dict[str, Any], folder: Path) -> Record:
    """Attack the run's network as the settings say; perturbations and figures are left in the folder."""
    import torch
    from hydra.utils import instantiate

    from worstcase.attacks import Ensemble, MonteCarlo
    from worstcase.data import ImageDataModule
    from worstcase.diagnosis import diagnose
    from worstcase.figures import evaluation_figures
    from worstcase.flags import lower_elsewhere, red_flags
    from worstcase.heldout import attack_one_half
    from worstcase.runs import CHECKPOINT, build, check_fit, load_weights, make_crossbar, network

    record = Record.load_training(Path(cfg["run"])) if cfg["run"] else None
    thgs = schema.bounds(cfg)
    crossbar = make_crossbar(network(record.config if record else {}, cfg["net"]), {**cfg, "thg": thgs[-1]})
    load_weights(crossbar, Path(cfg["checkpoint"] or Path(cfg["run"], CHECKPOINT)))
    crossbar.to("cuda" if torch.cuda.is_available() else "cpu")
    chosen = HydraConfig.get().runtime.choices.get("dataset")
    # what comes from a record is not for Hydra to build
    datamodule = instantiate(cfg["dataset"]) if chosen else build(cfg["dataset"], ImageDataModule)
    datamodule.prepare_data()
    check_fit(crossbar, datamodule)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        try:
            crossbar.calibrate(datamodule.val_dataloader())  # of the training data
        except FileNotFoundError as error:
            raise FileNotFoundError(f"model.activation_bits needs training data, to set ranges: {error}") from None
    attack = instantiate(cfg["attack"])
    attack.check_classes(datamodule.num_classes)
    loader = datamodule.test_dataloader()
    found, halves = [], []
    for thg in thgs:
        crossbar.thg = thg
        start = found[-1].perturbation if found else None
        state = folder if len(thgs) == 1 else folder / f"thg{thg:g}"
        found.append(attack(crossbar, loader, start=start, seed=cfg["seed"], folder=state))
        halves.append(attack_one_half(attack, crossbar, loader, seed=cfg["seed"]) if cfg["heldout"] else None)
    vertices = None
    if not isinstance(attack, Ensemble | MonteCarlo):
        vertices = MonteCarlo(instances=RANDOM_VERTICES, sampler="vertex")(
            crossbar, loader, seed=cfg["seed"]
        ).accuracy
    attacks = [
        AttackRecord.of(one, seed=cfg["seed"], perturbation=file, halves=half)
        for one, file, half in zip(found, save_perturbations(found, folder), halves, strict=True)
    ]
    diagnosis = diagnose(crossbar, loader, found[-1].perturbation, full=cfg["diagnosis"] == "full")
    evaluation = Record.of(
        crossbar,
        found,
        seed=cfg["seed"],
        kind="evaluate",
        source_run=os.path.relpath(cfg["run"], folder) if cfg["run"] else None,
        command=cli.command("evaluate"),
        config=cfg,
        method=record.method if record else None,
        model=record.model if record else cfg["net"],
        dataset=chosen or record.dataset,
        reference="test",
        attacks=attacks,
        flags=red_flags(attacks, vertices, diagnosis),
        diagnosis=diagnosis,
        train_seconds=None,
        epochs=record.epochs if record else None,
    )
    siblings = Path(cfg["run"], "evaluations") if cfg["run"] else folder.parent
    others = [other for _, other in finished_runs([siblings])] if siblings.name == "evaluations" else []
    evaluation.flags += lower_elsewhere(evaluation, others + ([record] if record else []))
    try:
        for name, figure in evaluation_figures(evaluation).items():
            figure.savefig(folder / f"{name}.png", dpi=150)
    except Exception:  # the record matters more, and holds all that they show
        log.exception("figures could not be drawn")
    return evaluation


if __name__ == "__main__":
    cli.start(main, identity.naming_the_newest_run)
