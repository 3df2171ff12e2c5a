"""Attack what a training run left, and record the lowest accuracy found: python -m src.evaluate."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src import cli
from worstcase.results import PERTURBATION, Record


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    cli.run_job("evaluate", evaluate, cfg)


def evaluate(cfg: DictConfig, folder: Path) -> Record:
    """Attack the run's network as the configuration says; the perturbation is left in the folder."""
    import torch
    from hydra.utils import instantiate
    from safetensors.torch import save_file

    from worstcase.runs import CHECKPOINT, check_fit, load_weights, make_crossbar, network

    record = Record.load(Path(cfg.run)) if cfg.run else None
    crossbar = make_crossbar(network(record.config if record else {}, cfg.net), cfg)
    load_weights(crossbar, Path(cfg.checkpoint or Path(cfg.run, CHECKPOINT)))
    crossbar.to("cuda" if torch.cuda.is_available() else "cpu")
    datamodule = instantiate(cfg.dataset)
    datamodule.prepare_data()
    check_fit(crossbar, datamodule)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        crossbar.calibrate(datamodule.val_dataloader())  # of the training data
    found = instantiate(cfg.attack)(crossbar, datamodule.test_dataloader())
    save_file(found.perturbation, folder / PERTURBATION)
    dataset = HydraConfig.get().runtime.choices.get("dataset")
    return Record.of(
        crossbar,
        found,
        seed=cfg.seed,
        kind="evaluate",
        source_run=os.path.relpath(cfg.run, folder) if cfg.run else None,
        command=cli.command("evaluate"),
        config=OmegaConf.to_container(cfg),
        method=record.method if record else None,
        model=record.model if record else cfg.net,
        dataset=dataset or record.dataset,
        reference="test",
        train_seconds=None,
        epochs=record.epochs if record else None,
    )


if __name__ == "__main__":
    cli.start(main)
