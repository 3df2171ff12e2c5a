"""Ranges of the settings, checked before anything is written or any long work begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from worstcase.app.schema import PROGRAMMING
from worstcase.chip.tolerance import from_plain, largest
from worstcase.evaluation.record import check_config

GROUPS = {  # by the place of each in the configuration, how it is chosen
    "model": "model",
    "model.optimizer": "model",
    "dataset": "dataset",
    "method": "method",
    "attack": "attack",
    "val_attack": "attack@val_attack",
    "test_attack": "attack@test_attack",
    "method.attack": "attack@method.attack",
    "suite": "suite",
    "callbacks": "callbacks",
    "trainer": "trainer",
    "logger": "logger",
}

COUNTS = {  # whole numbers and the least that each may be
    "dataset.batch_size": 1,
    "dataset.limit": 2,
    "trainer.max_epochs": 1,
    "trainer.accumulate_grad_batches": 1,
    "method.steps": 1,
    "method.members": 1,
    "model.weight_bits": 1,
    "model.activation_bits": 1,
    "mapping.device_bits": 1,
}

OF_THE_COMMAND = {  # arguments of the trainer that the command sets, and what to do instead
    "callbacks": "add one with +callbacks.NAME._target_=...",
    "logger": "choose one with logger=NAME",
    "default_root_dir": "choose the folder with hydra.run.dir=FOLDER",
    "enable_progress_bar": "leave it out",
    "enable_model_summary": "leave it out",
    "num_sanity_val_steps": "leave it out",
}

CHOICES = {
    "full_scale": ("layer_max", "unit"),
    "scale": ("quick", "paper"),
    "diagnosis": ("short", "full"),
    "certificate": ("auto", "interval", "linear", "null"),
    "chip_holds": ("deviations", "weights"),
    "share": ("same", "random", "first_and_last", "magnitude", "swim", "array", "weight"),
    "search_dtype": ("bfloat16", "null"),
}


def bounds(settings: Mapping[str, Any]) -> list[float]:
    """All th_g of a configuration, the smallest first; of tolerances the largest deviation of a device."""
    thg = settings.get("thg")
    if isinstance(thg, dict) and "digest" in thg:
        return [thg["largest"]]
    if isinstance(thg, dict):
        return [largest(from_plain(thg))]
    if isinstance(thg, list):
        if not thg:
            raise ValueError("thg=[]: must be a number, or a list of one or more")
        return sorted(set(thg)) if all(isinstance(t, int | float) for t in thg) else thg
    return [] if thg is None else [thg]


def check(settings: Mapping[str, Any]) -> None:
    """Check that a train or evaluate configuration is whole, and its ranges; settings that are null pass.

    Args:
        settings: in plain types, without Hydra's own.

    Raises:
        ValueError: for the first setting that is out of range, or that no record can hold.
    """
    flat = dict(_flat(settings))
    for place, group in GROUPS.items():
        if isinstance(chosen := flat.get(place, {}), dict):
            continue
        raise ValueError(f"{place}={chosen}: choose one of the group's files with {group}=NAME")
    for key, value in flat.items():
        if value == "???":
            raise ValueError(f"{key} is needed: {key}=VALUE")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value}: must be a finite number")
    full_scale = settings.get("full_scale")
    for thg in _numbers(settings):
        if isinstance(thg, bool) or not isinstance(thg, int | float) or not (math.isfinite(thg) and thg >= 0):
            raise ValueError(f"thg={thg}: must be a finite number, 0 or more")
        if full_scale != "unit" and thg > 1:
            raise ValueError(f"thg={thg}: must be at most 1, a fraction of each layer's full scale")
    for key, allowed in CHOICES.items():
        if settings.get(key) is not None and settings[key] not in allowed:
            raise ValueError(f"{key}={settings[key]}: must be {' or '.join(allowed)}")
    seed = settings.get("seed")
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: must be 0 to 4294967295")
    for key, least in COUNTS.items():
        value = flat.get(key)
        if value is not None and not _is_whole(value, least):
            raise ValueError(f"{key}={value}: must be a whole number, {least} or more")
    threads = settings.get("threads", "auto")
    if threads != "auto" and not _is_whole(threads, 1):
        raise ValueError(f"threads={threads}: must be auto, or a whole number, 1 or more")
    _check_devices(settings)
    if "accuracy" in settings:
        _check_search(settings)
    if (to_keep := settings.get("reprogram")) is not None:
        if not settings.get("chip"):
            raise ValueError(f"reprogram={to_keep:g}: needs chip=FILE, a chip that was read back")
        if not 0 < to_keep <= 1:
            raise ValueError(f"reprogram={to_keep:g}: must be above 0 and at most 1, an accuracy")
    if settings.get("pulses") is None:
        if settings.get("share") not in (None, "weight"):
            raise ValueError(f"share={settings['share']}: needs pulses=NUMBER, which it shares out")
        if "share" in settings:
            for name, value in settings["programming"].items():
                if value != PROGRAMMING[name]:
                    raise ValueError(f"programming.{name}={value}: needs pulses=NUMBER, whose th_g it tells")
    if settings.get("chip_holds") == "weights" and not settings.get("chip"):
        raise ValueError("chip_holds=weights: needs chip=FILE, a chip that was read back")
    if settings.get("merge") and settings["attack"].get("_target_") != "worstcase.attacks.MonteCarlo":
        raise ValueError("merge=true: needs attack=monte_carlo, whose chips it puts together")
    if "trainer" in settings:
        if settings["thg"] is None or isinstance(settings["thg"], list):
            raise ValueError(
                f"thg={settings['thg']}: a training has one; sweep over several with -m thg=0.01,0.03"
            )
        _check_trainer(settings["trainer"])
        if not (_is_number(lr := flat.get("model.optimizer.lr", 0)) and lr >= 0):
            raise ValueError(f"model.optimizer.lr={'null' if lr is None else lr}: must be a number, 0 or more")
    check_config(dict(settings))


def _numbers(settings: Mapping[str, Any]) -> list[Any]:
    """All th_g that are numbers, or should be."""
    thg = settings.get("thg")
    if not isinstance(thg, dict):
        return bounds(settings)
    if not thg:
        raise ValueError("thg={}: must be a number, or patterns of arrays' names with their own")
    if "conductance" in thg or "digest" in thg:
        return []
    return [one for one in thg.values() if not isinstance(one, dict)]


def _check_search(settings: Mapping[str, Any]) -> None:
    if not 0 < settings["accuracy"] <= 1:
        raise ValueError(f"accuracy={settings['accuracy']}: must be above 0 and at most 1")
    if isinstance(settings["thg"], list):
        raise ValueError("thg: must be one, where the search begins")
    if settings["certificate"] == "auto":
        raise ValueError("certificate=auto: must be interval, linear or null, since the search proves many th_g")


def _check_devices(settings: Mapping[str, Any]) -> None:
    mapping = settings.get("mapping") or {}
    for key in ("pair", "cut_off"):
        if mapping.get(key) not in (None, True, False):
            raise ValueError(f"mapping.{key}={mapping[key]}: must be true or false")
    if mapping.get("pair") and isinstance(settings.get("thg"), list):
        raise ValueError("thg=[...]: with mapping.pair=true thg is a device's; give one, or sweep with -m")
    device_bits, weight_bits = mapping.get("device_bits"), (settings.get("model") or {}).get("weight_bits")
    if device_bits is not None and (weight_bits is None or weight_bits % device_bits):
        said = "null" if weight_bits is None else weight_bits
        raise ValueError(f"mapping.device_bits={device_bits}: must divide model.weight_bits, which is {said}")


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Refuse what Lightning takes but leaves a run without a network, or a network without a test."""
    for name, instead in OF_THE_COMMAND.items():
        if name in trainer:
            raise ValueError(f"trainer.{name}: the command sets it itself; {instead}")
    epochs = trainer.get("max_epochs")
    if epochs is None:
        raise ValueError("trainer.max_epochs=null: must be a whole number, 1 or more")
    if trainer.get("fast_dev_run"):
        raise ValueError("trainer.fast_dev_run: leaves no checkpoint; say dataset.limit=100 trainer.max_epochs=1")
    if str(precision := trainer.get("precision")) in ("16-true", "bf16-true", "64-true", "64"):
        raise ValueError(f"trainer.precision={precision}: must be 32-true, 16-mixed or bf16-mixed")
    share = trainer.get("limit_train_batches")
    if share is not None and not (_is_number(share) and share > 0):
        raise ValueError(f"trainer.limit_train_batches={share}: must be above 0; a run trains")
    if _is_number(interval := trainer.get("val_check_interval", 1)) and interval <= 0:
        raise ValueError(f"trainer.val_check_interval={interval}: must be above 0; an epoch is kept by validation")
    if _is_number(clip := trainer.get("gradient_clip_val", 0)) and clip < 0:
        raise ValueError(f"trainer.gradient_clip_val={clip}: must be 0, which does not clip, or more")
    if trainer.get("reload_dataloaders_every_n_epochs"):
        raise ValueError(
            "trainer.reload_dataloaders_every_n_epochs: a resumed run would see its data in another order; leave "
            "it out"
        )
    for key, whole in {"limit_val_batches": 1.0, "limit_test_batches": 1.0, "overfit_batches": 0}.items():
        value = trainer.get(key)
        if value is not None and (value != whole or (whole and isinstance(value, int))):
            raise ValueError(f"trainer.{key}={value}: attacks see all images; for fewer say dataset.limit=NUMBER")
    if (strategy := str(trainer.get("strategy"))).endswith(("fork", "spawn", "notebook")):
        raise ValueError(f"trainer.strategy={strategy}: results stay in the processes that it starts; take ddp")
    every = trainer.get("check_val_every_n_epoch")
    if every is not None and not (_is_whole(every, 1) and epochs % every == 0):
        raise ValueError(
            f"trainer.check_val_every_n_epoch={every}: must divide trainer.max_epochs={epochs}, so that the last "
            "epoch is validated and may be kept"
        )


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting, and every group of them, by its dotted name."""
    for key, value in settings.items():
        yield f"{before}{key}", value
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, list):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{before}{key}.")
