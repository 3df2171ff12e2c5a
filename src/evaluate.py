"""Attack what a training run left, and record the lowest accuracy found: python -m src.evaluate."""

from __future__ import annotations

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src import cli
from worstcase.results import PERTURBATION, AttackRecord, Record


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="evaluate")
def main(cfg: DictConfig) -> None:
    cli.run_job("evaluate", evaluate, cfg)


def evaluate(cfg: DictConfig, folder: Path) -> Record:
    """Attack the run's network as the configuration says; the perturbation is left in the folder."""
    import torch
    from hydra.utils import instantiate
    from safetensors.torch import save_file

    from worstcase import Crossbar, load_run

    run = load_run(cfg.run, checkpoint=cfg.checkpoint)
    datamodule = instantiate(cfg.dataset)
    datamodule.prepare_data()
    crossbar = Crossbar(
        run.crossbar.net, cfg.thg, full_scale=cfg.full_scale, layers=cfg.layers, exclude=cfg.exclude
    )
    crossbar.to("cuda" if torch.cuda.is_available() else "cpu")
    found = instantiate(cfg.attack)(crossbar, datamodule.test_dataloader())
    save_file(found.perturbation, folder / PERTURBATION)
    dataset = HydraConfig.get().runtime.choices.get("dataset")
    return Record(
        kind="evaluate",
        source_run=os.path.relpath(cfg.run, folder),
        command=cli.command("evaluate"),
        config=OmegaConf.to_container(cfg),
        seed=cfg.seed,
        method=run.record.method,
        model=run.record.model,
        dataset=dataset or run.record.dataset,
        reference="test",
        samples=found.samples,
        dtype=run.record.dtype,
        thg=cfg.thg,
        full_scale=cfg.full_scale,
        clean_accuracy=found.clean_accuracy,
        attacks=[AttackRecord.of(found, seed=cfg.seed, perturbation=PERTURBATION)],
        train_seconds=None,
        epochs=run.record.epochs,
        parameters_perturbed=sum(weight.numel() for weight in crossbar.programmed().values()),
    )


if __name__ == "__main__":
    cli.start(main)
