"""Results beside the paper's: of which of its networks they are, and how their scale differs from its."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from worstcase.paper import numbers
from worstcase.report.rows import CLEAN, GATHERED, GIVEN, gather, with_clean

THG = 0.03  # of the paper's tables and figures but Fig. 8 and Table VI
SUBSTITUTES = {"mnist5k": "mnist"}
"""Data sets that stand for one of the paper's at a smaller scale."""
GIVEN_NETS = {"torchvision.models:resnet18": "resnet18_imagenet", "torchvision.models:vgg16": "vgg16"}
"""Networks of the paper that are not trained here but given to an evaluation, `net=`."""
SAMPLES = {**numbers.SAMPLES, "mnist5k": 1000}
"""Of the test splits."""
DEFAULTS = {"flwc": ("steps", 10), "lwc": ("project", "step")}
"""What the attacks are without Fig. 7's other numbers of steps and Fig. 3's search for c."""


def beside_paper(results: pd.DataFrame) -> pd.DataFrame:
    """Results and accuracies as programmed, with what the paper's figures and tables need besides.

    Returns:
        The rows with the columns `of` (the paper's network; missing if it is none of these), `shown` (its name),
        `differences` (their number) and `scale` (their text; empty for the paper's), `parameters` (the attack's
        settings) and `default` (whether these are the usual ones).
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
        [f"{few:,} chips"] if name and (few := said.get("instances", numbers.CHIPS)) < numbers.CHIPS else []
        for said, name in zip(parameters, found.folder.map(of), strict=True)
    ]
    found["of"] = found.folder.map(of).astype("string")
    return found.assign(
        method=found.method.fillna(GIVEN),
        shown=found.of.fillna(found.network + ", " + found.dataset),
        differences=found.folder.map(differ).map(len),
        scale=[", ".join(differ[folder] + few) for folder, few in zip(found.folder, chips, strict=True)],
        parameters=parameters,
        default=[
            (usual := DEFAULTS.get(attack)) is None or said.get(*usual) == usual[1]
            for attack, said in zip(found.attack, parameters, strict=True)
        ],
    )


def at_papers_thg(results: pd.DataFrame) -> pd.DataFrame:
    """What was attacked at th_g 0.03, of networks that were trained for it or for none."""
    return beside_paper(results[results.as_trained & (results.thg == THG)])


def published(found: pd.DataFrame, table: Mapping[Any, Mapping[str, float]], by: str = "attack") -> pd.Series:
    """The paper's number for each result; missing where it has none."""
    values = [table.get(of, {}).get(key) for of, key in zip(found.of, found[by], strict=True)]
    return pd.Series(values, found.index, dtype=float)


def rows_beside(found: pd.DataFrame, labels: list[str], **options: Any) -> pd.DataFrame:
    """Rows gathered over seeds, with the names that are shown of networks and attacks."""
    shown = found.assign(network=found.shown, attack=found.attack.replace(CLEAN, "none"))
    return gather(shown, labels, **options)


def rows_of(run: pd.DataFrame, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Values of one run as a table.

    Args:
        run: its results.
        rows: the labels of each, and its `mean`; if not a fraction, `unit`; if there is one, `paper`.
    """
    made = [{"unit": "%", **row, "mean": float(row["mean"]), "each seed": [float(row["mean"])]} for row in rows]
    labels = [name for name in dict.fromkeys(name for row in made for name in row) if name not in GATHERED]
    return pd.DataFrame(made).assign(seeds=1, scale=run.scale.iloc[0]).reindex(columns=[*labels, *GATHERED])


def _differences(run: Mapping[str, Any], network: str | None) -> list[str]:
    """How a run's scale differs from the paper's; empty for the paper's."""
    if network is None:
        return ["not in the paper"]
    differ = []
    made, attacked = json.loads(run["network_settings"]), json.loads(run["reference_settings"])
    dataset = numbers.NETWORKS[network][1]
    if run["dataset"] != dataset:
        differ.append(f"{run['dataset']} for {dataset}")
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
    return differ
