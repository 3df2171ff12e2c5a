"""Attack a trained network, explain its worst chip, and record both: python -m src.evaluate."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from worstcase.app import naming, schema, shares, sweeps
from worstcase.app.doors import CONF, command
from worstcase.app.errors import instantiated
from worstcase.app.job import run_job
from worstcase.app.start import start
from worstcase.evaluation.record import Record, finished_runs


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def _evaluate(cfg: DictConfig) -> float | None:
    return run_job("evaluate", evaluate, cfg)


def main() -> None:
    start(_evaluate, naming.naming_the_newest_run)


def evaluate(cfg: dict[str, Any], folder: Path) -> Record:
    """Attack the network as the settings say, and leave the record, perturbations and figures in the folder."""
    import torch

    import worstcase
    from worstcase.data import ImageDataModule
    from worstcase.evaluation.flags import lower_elsewhere
    from worstcase.runs import CHECKPOINT, build, check_fit, load_weights, make_crossbar, network

    siblings = Path(cfg["run"], "evaluations") if cfg["run"] else folder.parent
    if cfg["merge"]:
        shares.merge(cfg, siblings, folder)
    record = Record.load_training(Path(cfg["run"])) if cfg["run"] else None
    thgs = schema.bounds(cfg)
    crossbar = make_crossbar(network(record.config if record else {}, cfg["net"]), {**cfg, "thg": thgs[-1]})
    load_weights(crossbar, Path(cfg["checkpoint"] or Path(cfg["run"], CHECKPOINT)))
    crossbar.to("cuda" if torch.cuda.is_available() else "cpu")
    chosen = HydraConfig.get().runtime.choices.get("dataset")
    # Hydra builds nothing that comes from a record
    datamodule = instantiated(cfg, "dataset") if chosen else build(cfg["dataset"], ImageDataModule)
    datamodule.prepare_data()
    check_fit(crossbar, datamodule)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        try:
            crossbar.calibrate(datamodule.val_dataloader())  # of the training data
        except FileNotFoundError as error:
            raise FileNotFoundError(f"model.activation_bits needs training data, to set ranges: {error}") from None
    attack = instantiated(cfg, "attack")
    attack.check_classes(datamodule.num_classes)
    evaluation = worstcase.evaluate(
        crossbar,
        datamodule.test_dataloader(),
        [attack],
        thgs=thgs,
        heldout=cfg["heldout"],
        diagnosis=cfg["diagnosis"],
        certificate=cfg["certificate"],
        up_to=True,
        seed=cfg["seed"],
        folder=folder,
    )
    result = evaluation.record(
        source_run=os.path.relpath(cfg["run"], folder) if cfg["run"] else None,
        command=command("evaluate"),
        sweep=sweeps.command(),
        config=cfg,
        method=record.method if record else None,
        model=record.model if record else cfg["net"],
        dataset=chosen or (record.dataset if record else None),
        epochs=record.epochs if record else None,
    )
    others = [other for _, other in finished_runs([siblings])] if siblings.name == "evaluations" else []
    result.flags += lower_elsewhere(result, others + ([record] if record else []))
    evaluation.save(folder, result)
    return result
