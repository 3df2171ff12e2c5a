"""The settings of each command, by name and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from worstcase.app.errors import no_such_setting
from worstcase.evaluation.settings import NO_MAPPING


@dataclass
class TrainConfig:
    """Top level of conf/train.yaml; a group's keys are those of its files."""

    thg: Any = MISSING
    sigmas: float | None = None
    mapping: Any = MISSING
    full_scale: str = MISSING
    layers: list[str] = MISSING
    exclude: list[str] = MISSING
    arrays: list[str] = MISSING
    seed: int = MISSING
    threads: Any = MISSING
    data_dir: str = MISSING
    net: str | None = None
    init_from: str | None = None
    pulses: float | None = None
    share: str = MISSING
    programming: Any = MISSING
    diagnosis: str | None = None
    certificate: str | None = MISSING
    search_dtype: str | None = None
    scale: str = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    method: Any = MISSING
    val_attack: Any = MISSING
    test_attack: Any = MISSING
    suite: Any = MISSING
    callbacks: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING


@dataclass
class UnderTest:
    """Of conf/under_test.yaml; null means 'as in the training run'."""

    run: str | None = None
    checkpoint: str | None = None
    weights: str | None = None
    net: str | None = None
    thg: Any = None
    sigmas: float | None = None
    mapping: Any = MISSING
    full_scale: str | None = None
    layers: list[str] | None = None
    exclude: list[str] | None = None
    arrays: list[str] | None = None
    seed: int | None = None
    threads: Any = MISSING
    data_dir: str | None = None
    certificate: str | None = MISSING
    model: Any = MISSING
    dataset: Any = MISSING
    attack: Any = MISSING


@dataclass
class EvaluateConfig(UnderTest):
    """Top level of conf/evaluate.yaml."""

    chip: str | None = None
    chip_holds: str = MISSING
    chip_digest: str | None = None
    reprogram: float | None = None
    pulses: float | None = None
    share: str = MISSING
    programming: Any = MISSING
    heldout: bool = False
    merge: bool = False
    diagnosis: str | None = MISSING
    search_dtype: str | None = None


@dataclass
class ToleranceConfig(UnderTest):
    """Top level of conf/tolerance.yaml."""

    accuracy: float = MISSING
    precision: float = MISSING
    where: bool = MISSING
    programming: Any = MISSING


@dataclass
class ReportConfig:
    """Top level of conf/report.yaml."""

    folders: list[str] = MISSING
    out: str = MISSING
    wandb: bool = False


@dataclass
class StatusConfig:
    """Top level of conf/status.yaml."""

    folders: list[str] = MISSING
    sweep: str | None = None
    scale: str = MISSING


PROGRAMMING = {
    "sigma": 0.1,
    "weight_bits": None,
    "device_bits": 2,
    "pulse_seconds": None,
    "read_seconds": 0.0,
    "pulse_joules": None,
    "parallel": 1,
}
"""What conf/programming.yaml says."""
WITHIN = {"mapping": tuple(NO_MAPPING), "programming": tuple(PROGRAMMING)}
"""The settings of groups that have no files."""


KINDS = {
    "trainer": TrainConfig,
    "accuracy": ToleranceConfig,
    "run": EvaluateConfig,
    "out": ReportConfig,
    "sweep": StatusConfig,
}
"""By a setting that it has: the settings of a command."""


def check_names(settings: Mapping[str, Any]) -> None:
    """Refuse settings that nobody would read, which +NAME=VALUE adds.

    Args:
        settings: of a command, before the command adds its own.

    Raises:
        ValueError: for the first of them.
    """
    said_or_needed = settings.keys()  # a needed one is not "in" them until it is said
    kind = next((kind for name, kind in KINDS.items() if name in said_or_needed), TrainConfig)
    places: dict[str, tuple[Any, Sequence[str]]]
    places = {"": (settings, [field.name for field in fields(kind)])}
    for place, names in WITHIN.items():
        if place in settings and not isinstance(settings[place], Mapping):
            raise ValueError(f"{place}={settings[place]}: say {place}.NAME=VALUE; there are {', '.join(names)}")
        places[f"{place}."] = settings.get(place), names
    for place, (said, known) in places.items():
        for name in said if isinstance(said, Mapping) else ():
            if name not in known and name != "hydra":
                raise ValueError(no_such_setting(f"{place}{name}", known))


def register() -> None:
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("evaluate_schema", EvaluateConfig)
    store.store("tolerance_schema", ToleranceConfig)
    store.store("report_schema", ReportConfig)
    store.store("status_schema", StatusConfig)
