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

    from worstcase.runs import CHECKPOINT, check_fit, load_run, load_weights, make_crossbar, user_net

    trained = load_run(cfg.run, checkpoint=cfg.checkpoint, net=cfg.net) if cfg.run else None
    crossbar = make_crossbar(trained.crossbar.net if trained else user_net(cfg.net), cfg)
    load_weights(crossbar, Path(cfg.checkpoint or Path(cfg.run, CHECKPOINT)))
    datamodule = instantiate(cfg.dataset)
    datamodule.prepare_data()
    check_fit(crossbar, datamodule)
    if crossbar.outputs is not None and crossbar.outputs.ranges.isnan().any():
        crossbar.calibrate(datamodule.val_dataloader())  # of the training data
    crossbar.to("cuda" if torch.cuda.is_available() else "cpu")
    found = instantiate(cfg.attack)(crossbar, datamodule.test_dataloader())
    save_file(found.perturbation, folder / PERTURBATION)
    dataset = HydraConfig.get().runtime.choices.get("dataset")
    record = trained.record if trained else None
    return Record(
        kind="evaluate",
        source_run=os.path.relpath(cfg.run, folder) if cfg.run else None,
        command=cli.command("evaluate"),
        config=OmegaConf.to_container(cfg),
        seed=cfg.seed,
        method=record.method if record else None,
        model=record.model if record else cfg.net,
        dataset=dataset or record.dataset,
        reference="test",
        samples=found.samples,
        dtype=str(next(crossbar.net.parameters()).dtype).removeprefix("torch."),
        thg=cfg.thg,
        full_scale=cfg.full_scale,
        weight_bits=crossbar.weight_bits,
        activation_bits=crossbar.activation_bits,
        clean_accuracy=found.clean_accuracy,
        attacks=[AttackRecord.of(found, seed=cfg.seed, perturbation=PERTURBATION)],
        train_seconds=None,
        epochs=record.epochs if record else None,
        parameters_perturbed=sum(weight.numel() for weight in crossbar.programmed().values()),
    )


if __name__ == "__main__":
    cli.start(main)
