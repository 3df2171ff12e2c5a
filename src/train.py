"""Train a network, attack it, and record the lowest accuracy found: python -m src.train."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src import cli
from worstcase.results import AttackRecord, Record, save_perturbations


@hydra.main(version_base="1.3", config_path=cli.CONF, config_name="train")
def main(cfg: DictConfig) -> None:
    cli.run_job("train", train, cfg)


def train(cfg: DictConfig, folder: Path) -> Record:
    """Train, test and attack as the configuration says; what the run leaves lies in the folder."""
    import lightning as L
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

    from worstcase.callbacks import EpochLines, WorstCaseAtTest
    from worstcase.flags import red_flags
    from worstcase.runs import CHECKPOINT, check_fit, load_weights, make_crossbar, user_net

    _quieten()
    L.seed_everything(cfg.seed, verbose=False)
    datamodule = instantiate(cfg.dataset)
    datamodule.prepare_data()
    datamodule.setup()
    crossbar = make_crossbar(user_net(cfg.net) if cfg.net else instantiate(cfg.model.net), cfg)
    if cfg.init_from:
        load_weights(crossbar, Path(cfg.init_from))
    check_fit(crossbar, datamodule)
    method = instantiate(cfg.method, _partial_=True)(
        crossbar,
        num_classes=datamodule.num_classes,
        optimizer=instantiate(cfg.model.optimizer),
        scheduler=instantiate(cfg.model.scheduler),
    )

    terminal = sys.stderr.isatty()
    checkpoint = ModelCheckpoint(
        folder / CHECKPOINT.parent,
        filename=CHECKPOINT.stem,
        monitor=method.monitor,
        mode="max",
        enable_version_counter=False,
    )
    callbacks = list(instantiate(cfg.callbacks).values())
    at_test = next((callback for callback in callbacks if isinstance(callback, WorstCaseAtTest)), None)
    if at_test is None:
        raise ValueError("callbacks: a run needs a worstcase.callbacks.WorstCaseAtTest for its record")
    loggers = _loggers(cfg, folder)
    trainer = L.Trainer(
        **cfg.trainer,
        default_root_dir=folder,
        logger=loggers,
        callbacks=[*callbacks, checkpoint, RichProgressBar() if terminal else EpochLines()],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    for logger in loggers:
        logger.log_hyperparams(OmegaConf.to_container(cfg))
    try:
        started = time.perf_counter()
        trainer.fit(method, datamodule=datamodule)
        train_seconds = time.perf_counter() - started
        best = checkpoint.best_model_path
        trainer.test(method, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
    finally:
        if "wandb" in sys.modules:  # so that the next job of a sweep begins a run of its own
            sys.modules["wandb"].finish()

    attacks = [
        AttackRecord.of(found, seed=cfg.seed, perturbation=file)
        for found, file in zip(at_test.found, save_perturbations(at_test.found, folder), strict=True)
    ]
    choices = HydraConfig.get().runtime.choices
    return Record.of(
        crossbar,
        at_test.found,
        seed=cfg.seed,
        kind="train",
        source_run=None,
        command=cli.command("train"),
        config=OmegaConf.to_container(cfg),
        method=choices.method,
        model=cfg.net or choices.model,
        dataset=choices.dataset,
        reference="test",
        attacks=attacks,
        flags=red_flags(attacks),
        train_seconds=train_seconds,
        epochs=trainer.current_epoch,
    )


def _loggers(cfg: DictConfig, folder: Path) -> list:
    """The loggers of the group, writing into the run's folder; wandb stays offline unless logged in."""
    from hydra.utils import instantiate

    if "wandb" in cfg.logger:
        from requests.utils import get_netrc_auth

        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if not (os.environ.get("WANDB_API_KEY") or get_netrc_auth(host)):
            os.environ.setdefault("WANDB_MODE", "offline")
    return [instantiate(logger, save_dir=folder) for logger in cfg.logger.values()]


def _quieten() -> None:
    """Lightning's remarks on hardware, loaders and its own products say nothing about the user's run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")


if __name__ == "__main__":
    cli.start(main)
