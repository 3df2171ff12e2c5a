"""Records of a small study, made from the records of real runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from worstcase.evaluation.record import AttackRecord, Record

if TYPE_CHECKING:
    import pandas as pd

    from worstcase.report.section import Section

TARGETS = {"vanilla": "worstcase.methods.Vanilla", "va": "worstcase.methods.VariationAware"}
SWEEP = "python -m src.train -m experiment=fig8a scale=quick"


def record_of(record: Record, *, method: str, seed: int, thgs: list[float]) -> Record:
    """A record with another method, seed and th_g, in which LWC finds 0.5 + seed / 10 and F-LWC finds less."""

    def found(attack: str, thg: float, accuracy: float, **parameters: object) -> AttackRecord:
        return dataclasses.replace(
            record.attacks[0],
            attack=attack,
            thg=thg,
            accuracy=accuracy,
            max_relative_perturbation=0.0,
            parameters={"steps": 10, **record.attacks[0].parameters, **parameters},
        )

    attacks = [found("lwc", thg, 0.5 + seed / 10) for thg in thgs] + [found("flwc", thg, 0.4) for thg in thgs]
    if method == "vanilla":
        attacks += [found("pgd", 0.03, 0.45), found("flwc", 0.03, 0.7, steps=2)]
    return dataclasses.replace(
        record,
        method=method,
        seed=seed,
        thg=thgs[-1],
        clean_accuracy=0.9,
        attacks=attacks,
        config={
            **record.config,
            "thg": thgs[-1],
            "method": {
                "_target_": TARGETS.get(method, method),
                "monitor": "val/accuracy",
                "trains_without_thg": method in TARGETS,
            },
        },
        command=f"python -m src.train experiment=fig8a scale=quick method={method} thg={thgs[-1]} seed={seed}",
        sweep=SWEEP,
        git_commit="a" * 40,
        trained_commit=None,
        flags=[],
    )


def own_network(**changes: object) -> Record:
    """The record of a training of a network that is not in the paper, with two attacks on it."""
    found = {
        "thg": 0.02,
        "final_accuracy": 0.4,
        "max_relative_perturbation": 0.02,
        "feasible": True,
        "seconds": 1.0,
        "passes": 10.0,
        "parameters": {},
        "seed": 3,
        "perturbation": "perturbation.safetensors",
        "history": [{"passes": 10.0, "accuracy": 0.5}],
    }
    fields = {
        "kind": "train",
        "source_run": None,
        "command": "python -m src.train net=mine:Net seed=3",
        "config": {
            "thg": 0.02,
            "full_scale": "layer_max",
            "layers": ["*"],
            "exclude": [],
            "seed": 3,
            "data_dir": "data",
            "net": "mine:Net",
            "model": {"net": {"_target_": "mine.Net"}, "weight_bits": None, "activation_bits": None},
            "dataset": {"_target_": "mine.Data"},
            "method": {"_target_": TARGETS["vanilla"], "monitor": "val/accuracy"},
        },
        "seed": 3,
        "method": "vanilla",
        "model": "mine:Net",
        "dataset": "mine",
        "reference": "test",
        "samples": 100,
        "decisions": 100,
        "parameters": 4,
        "threads": 1,
        "dtype": "float32",
        "thg": 0.02,
        "full_scale": "layer_max",
        "clean_accuracy": 0.9,
        "attacks": [
            AttackRecord(attack=attack, accuracy=accuracy, **found)
            for attack, accuracy in (("flwc", 0.5), ("lwc", 0.25))
        ],
        "train_seconds": 1.0,
        "epochs": 3,
        "parameters_perturbed": 50,
        "git_commit": "a" * 40,
        "versions": {},
    }
    return Record(**{**fields, **changes})


def add(folder: Path, record: Record, **changes: object) -> None:
    folder.mkdir(parents=True)
    dataclasses.replace(record, **changes).save(folder)


def sections(*folders: Path) -> dict[str, Section]:
    from worstcase import results_frame
    from worstcase.paper import SECTIONS

    results = results_frame(folders)
    return {name: section for name, make in SECTIONS.items() if (section := make(results))}


def rows_of(section: Section, **labels: str) -> list[pd.Series]:
    """The rows with these labels."""
    return [row for _, row in section.rows.iterrows() if all(row[name] == label for name, label in labels.items())]


def labels(method: str, attack: str) -> dict[str, str]:
    return {"network": "LeNet, MNIST", "method": method, "attack": attack}
