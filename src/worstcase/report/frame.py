"""Records as a table to work with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worstcase.evaluation.record import Record, runs_and_trainings

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "folder": "of the run",
    "kind": "train or evaluate",
    "network": "as model= or net= names it",
    "dataset": "as dataset= names it",
    "method": "that trained the network; missing where its weights were given",
    "trained_thg": "th_g that the network was trained for",
    "seed": "of the training; of the attack where weights were given",
    "thg": "th_g that was attacked",
    "full_scale": "what th_g is relative to: layer_max or unit",
    "weight_bits": "missing: float",
    "activation_bits": "missing: float",
    "attack": "its name",
    "clean_accuracy": "as programmed",
    "attacked_accuracy": "the lowest that this attack found, at this th_g",
    "certified_accuracy": "what no chip is below; missing where nothing is proven",
    "heldout_accuracy": "on the half that a separate attack did not see; missing where none was made",
    "samples": "of the reference set",
    "passes": "forward or backward, over the reference set, that the attack took",
    "seconds": "that the attack took",
    "train_seconds": "that the training took",
    "epochs": "of the training",
    "flags": "how many, of the whole run",
    "commit": "of the library that ran",
}
"""What each column holds. Accuracies are fractions 0..1."""


def results_frame(folders: Iterable[str | Path] = ("outputs", "multirun")) -> pd.DataFrame:
    """The finished runs below some folders, a row an attack and th_g, oldest run first.

    Args:
        folders: searched for records; files that are none are skipped with a warning.

    Returns:
        A frame with the columns of `COLUMNS`, empty where nothing was found.

    Example:
        >>> frame = results_frame(["no-such-folder"])
        >>> list(frame.columns) == list(COLUMNS), len(frame)
        (True, 0)
    """
    import pandas as pd

    rows = [row for found in runs_and_trainings(map(Path, folders)) for row in _rows(*found)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).convert_dtypes()


def _rows(folder: Path, record: Record, training: Record | None) -> Iterable[dict[str, Any]]:
    for attack in record.attacks:
        yield {
            "folder": str(folder),
            "kind": record.kind,
            "network": record.model,
            "dataset": record.dataset,
            "method": record.method,
            "trained_thg": training.config["thg"] if training else None,
            "seed": training.seed if training else attack.seed,
            "thg": attack.thg,
            "full_scale": record.full_scale,
            "weight_bits": record.weight_bits,
            "activation_bits": record.activation_bits,
            "attack": attack.attack,
            "clean_accuracy": record.clean_accuracy,
            "attacked_accuracy": attack.accuracy,
            "certified_accuracy": record.certified_accuracy,
            "heldout_accuracy": attack.heldout_accuracy,
            "samples": record.samples,
            "passes": attack.passes,
            "seconds": attack.seconds,
            "train_seconds": training.train_seconds if training else None,
            "epochs": record.epochs,
            "flags": len(record.flags),
            "commit": record.git_commit,
        }
