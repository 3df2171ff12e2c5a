"""Puts results beside the paper's: which of its networks they belong to, and how their scale differs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from worstcase.paper import numbers
from worstcase.report.rows import CLEAN, GATHERED, GIVEN, gather, with_clean

THG = 0.03  # of the paper's tables and figures, except Fig. 8 and Table VI
SUBSTITUTES = {"mnist5k": "mnist"}
"""Smaller data sets that stand in for one of the paper's."""
GIVEN_NETS = {"torchvision.models:resnet18": "resnet18_imagenet", "torchvision.models:vgg16": "vgg16"}
"""Networks of the paper that are not trained here but passed to an evaluation with `net=`."""
SAMPLES = {**numbers.SAMPLES, "mnist5k": 1000}
"""Number of samples in each test split."""
DEFAULTS = {"flwc": ("steps", 10), "lwc": ("project", "step")}
"""The usual setting of these attacks. Fig. 7 has other numbers of steps, and Fig. 3 searches for c."""


def beside_paper(results: pd.DataFrame) -> pd.DataFrame:
    """Results and accuracies as programmed, with the further columns of the paper's figures and tables.

    Returns:
        The rows, with `of` (the paper's network; missing if it is not one of them), `shown` (the name that is
        shown), `scale` (how the scale differs from the paper's; empty if it does not), `differences` (in how many
        points), `parameters` (the attack's settings) and `default` (whether these are the usual ones).
    """
    found = with_clean(results)
    names = {network: name for name, network in numbers.NETWORKS.items()}
    runs = {run["folder"]: run for run in found.drop_duplicates("folder").to_dict("records")}
    of = {
        folder: names.get(
            (GIVEN_NETS.get(run["network"], run["network"]), SUBSTITUTES.get(run["dataset"], run["dataset"]))
        )
        for folder, run in runs.items()
    }
    differ = {folder: _differences(run, of[folder]) for folder, run in runs.items()}
    parameters = found.attack_settings.map(json.loads)
    chips = [
        [f"{few:,} chips"] if name and (few := settings.get("instances", numbers.CHIPS)) < numbers.CHIPS else []
        for settings, name in zip(parameters, found.folder.map(of), strict=True)
    ]
    found["of"] = found.folder.map(of).astype("string")
    return found.assign(
        method=found.method.fillna(GIVEN),
        shown=found.of.fillna(found.network + ", " + found.dataset),
        differences=found.folder.map(differ).map(len),
        scale=[", ".join(differ[folder] + few) for folder, few in zip(found.folder, chips, strict=True)],
        parameters=parameters,
        default=[
            (usual := DEFAULTS.get(attack)) is None or settings.get(*usual) == usual[1]
            for attack, settings in zip(found.attack, parameters, strict=True)
        ],
    )


def at_papers_thg(results: pd.DataFrame) -> pd.DataFrame:
    """Attacks at th_g 0.03 on networks that were trained for it or without th_g."""
    return beside_paper(results[results.as_trained & (results.thg == THG)])


def published(found: pd.DataFrame, table: Mapping[Any, Mapping[str, float]], by: str = "attack") -> pd.Series:
    """The paper's number for each result; missing if there is none."""
    values = [table.get(of, {}).get(key) for of, key in zip(found.of, found[by], strict=True)]
    return pd.Series(values, found.index, dtype=float)


def rows_beside(found: pd.DataFrame, labels: list[str], **options: Any) -> pd.DataFrame:
    """Rows grouped over seeds, with the names of networks and attacks that are shown."""
    shown = found.assign(network=found.shown, attack=found.attack.replace(CLEAN, "none"))
    return gather(shown, labels, **options)


def rows_of(run: pd.DataFrame, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Values of one run as a table.

    Args:
        run: its results.
        rows: for each its labels and `mean`; `unit` if that is not a fraction; `paper` if there is such a number.
    """
    made = [{"unit": "%", **row, "mean": float(row["mean"]), "each seed": [float(row["mean"])]} for row in rows]
    labels = [name for name in dict.fromkeys(name for row in made for name in row) if name not in GATHERED]
    return pd.DataFrame(made).assign(seeds=1, scale=run.scale.iloc[0]).reindex(columns=[*labels, *GATHERED])


def _differences(run: Mapping[str, Any], network: str | None) -> list[str]:
    """How a run's scale differs from the paper's; empty if it does not."""
    if network is None:
        return ["not in the paper"]
    differ = []
    made, attacked = json.loads(run["network_settings"]), json.loads(run["reference_settings"])
    dataset = numbers.NETWORKS[network][1]
    if run["dataset"] != dataset:
        differ.append(f"{run['dataset']} instead of {dataset}")
    if run["samples"] < SAMPLES[run["dataset"]]:
        differ.append(f"{run['samples']:,} test images")
    if limit := made.get("dataset.limit"):
        differ.append(f"at most {limit:,} training images")
    if (width := made.get("model.width", 1)) != 1:
        differ.append(f"width {width:g}")
    if (variant := made.get("model.variant", "authors")) != "authors":
        differ.append(f"variant {variant}")
    bits = [attacked["weight_bits"], attacked["activation_bits"]]
    if bits != [numbers.BITS[network]] * 2:
        texts = [f"{one} bits" if one else "float" for one in bits]
        differ.append(texts[0] if texts[0] == texts[1] else f"{texts[0]} weights, {texts[1]} outputs")
    if pd.notna(run["epochs"]) and run["epochs"] < numbers.EPOCHS:
        differ.append(f"{run['epochs']} epochs" if run["epochs"] != 1 else "1 epoch")
    if attacked["full_scale"] != "layer_max":
        differ.append("th_g in weight units")
    if attacked["layers"] not in (None, ["*"]) or attacked["exclude"]:
        differ.append("some layers exact")
    if any(key.partition(".")[0] in ("thg", "arrays", "mapping") for key in attacked):
        differ.append("devices of its own")
    return differ
