"""Types and ranges of the settings, checked before anything is written or any long work begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf


class ConfigError(ValueError):
    """A setting is out of range; the message says what is allowed."""


@dataclass
class TrainConfig:
    """Top level of conf/train.yaml; a group's keys are those of its files."""

    thg: float = MISSING
    full_scale: str = MISSING
    layers: list[str] = MISSING
    exclude: list[str] = MISSING
    seed: int = MISSING
    data_dir: str = MISSING
    net: str | None = None
    init_from: str | None = None
    thgs: list[float] | None = None
    scale: str = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    method: Any = MISSING
    val_attack: Any = MISSING
    test_attack: Any = MISSING
    callbacks: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING


@dataclass
class EvaluateConfig:
    """Top level of conf/evaluate.yaml; null means 'as in the training run'."""

    run: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    net: str | None = None
    thg: Any = None
    full_scale: str | None = None
    layers: list[str] | None = None
    exclude: list[str] | None = None
    heldout: bool = False
    diagnosis: str | None = MISSING
    seed: int | None = None
    data_dir: str | None = None
    model: Any = MISSING
    dataset: Any = MISSING
    attack: Any = MISSING


@dataclass
class ReportConfig:
    """Top level of conf/report.yaml."""

    folders: list[str] = MISSING
    out: str = MISSING
    status: Any = False
    scale: str = MISSING
    wandb: bool = False


def register() -> None:
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("report_schema", ReportConfig)


GROUPS = {  # by the place of each in the configuration, how it is chosen
    "model": "model",
    "dataset": "dataset",
    "method": "method",
    "attack": "attack",
    "val_attack": "attack@val_attack",
    "test_attack": "attack@test_attack",
    "method.attack": "attack@method.attack",
    "callbacks": "callbacks",
    "trainer": "trainer",
    "logger": "logger",
}

COUNTS = {  # whole numbers and the least that each may be
    "dataset.batch_size": 1,
    "dataset.limit": 2,
    "trainer.max_epochs": 1,
    "method.steps": 1,
    "method.members": 1,
    "model.weight_bits": 1,
    "model.activation_bits": 1,
}


def bounds(cfg: DictConfig) -> list[float]:
    """Each th_g of a configuration, the smallest first."""
    thg = cfg.get("thg")
    if OmegaConf.is_list(thg):
        if not thg:
            raise ConfigError("thg=[]: must be a number, or a list of one or more")
        return sorted(set(thg)) if all(isinstance(t, int | float) for t in thg) else list(thg)
    return [] if thg is None else [thg]


def check(cfg: DictConfig) -> None:
    """Check that a train or evaluate configuration is whole, and its ranges; settings that are null pass.

    Raises:
        ConfigError: for the first setting that is out of range.
    """
    for place, group in GROUPS.items():
        chosen = OmegaConf.select(cfg, place, default={})
        if not isinstance(chosen, dict | DictConfig):
            raise ConfigError(f"{place}={chosen}: choose one of the group's files with {group}=NAME")
    settings = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    if missing := sorted(OmegaConf.missing_keys(settings)):  # where others refer to one, it raises
        raise ConfigError(f"{missing[0]} is needed: {missing[0]}=VALUE")
    full_scale = cfg.get("full_scale")
    if full_scale not in (None, "layer_max", "unit"):
        raise ConfigError(f"full_scale={full_scale}: must be layer_max or unit")
    if cfg.get("thgs") is not None and not cfg.thgs:
        raise ConfigError("thgs=[]: must be null, or a list of one or more")
    for thg in [*bounds(cfg), *(cfg.get("thgs") or [])]:
        if isinstance(thg, bool) or not isinstance(thg, int | float) or not (math.isfinite(thg) and thg >= 0):
            raise ConfigError(f"thg={thg}: must be a finite number, 0 or more")
        if full_scale != "unit" and thg > 1:
            raise ConfigError(f"thg={thg}: must be at most 1, a fraction of each layer's full scale")
    if cfg.get("scale") not in (None, "quick", "paper"):
        raise ConfigError(f"scale={cfg.scale}: must be quick or paper")
    if "diagnosis" in cfg and cfg.diagnosis not in ("short", "full"):
        raise ConfigError(f"diagnosis={cfg.diagnosis}: must be short or full")
    seed = cfg.get("seed")
    if seed is not None and not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}: must be 0 to 4294967295")
    for key, least in COUNTS.items():
        value = OmegaConf.select(cfg, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ConfigError(f"{key}={value}: must be a whole number, {least} or more")
