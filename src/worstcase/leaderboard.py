"""The leaderboard: how well the networks of the zoo hold, as a page of tables."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from worstcase.evaluation.record import WEIGHTS, Record
from worstcase.evaluation.settings import BESIDE_TEST_DATA
from worstcase.whole_file import write_whole

if TYPE_CHECKING:
    import pandas as pd

JUDGE = "ensemble"
"""The attack that each network has to stand; what others found lower counts too."""
SAMPLED = "monte_carlo"
"""Not an attack: its chips are drawn at random."""


def leaderboard(folders: Iterable[Path], *, seen_from: Path | None = None) -> str:
    """Markdown: for each network, data set and box a table, the best method first, and the commands.

    Args:
        folders: searched for records.
        seen_from: the folder of the page; links to the records are relative to it. None: there are no links.
    """
    import pandas as pd

    from worstcase.report.frame import results_frame
    from worstcase.report.rows import differing

    frame = results_frame(folders)
    frame["reference_settings"] = frame["reference_settings"].map(_of_the_test_set)
    trained = frame[frame["kind"] == "train"][["training", *AS_TRAINED]].drop_duplicates()
    frame = frame[frame["as_trained"].fillna(False)].merge(trained)
    judged = (frame["attack"] == JUDGE).groupby([frame["training"], frame["thg"]]).transform("any")
    networks = [_best_known(runs) for _, runs in frame[judged].groupby(["training", "thg"])]
    frame = pd.DataFrame(networks, columns=[*frame.columns, "commands"])
    same = ["dataset", "network", "weights_perturbed", "weight_bits", "samples", "thg"]
    parts = []
    differ = differing(frame, same, ["reference_settings"])
    for _, rows in frame.groupby([*same, "reference_settings"], dropna=False, sort=True):
        trained = [_row(runs, seen_from) for _, runs in rows.groupby(TRAINING, dropna=False)]
        trained.sort(key=lambda row: -row.attacked)
        table = HEAD + "".join(row.text for row in trained)
        heading = _heading(rows.iloc[0], differ[rows.index[0]])
        commands = [command for row in trained for command in row.commands]
        parts.append(heading + table + "\n" + "".join(f"    {command}\n" for command in commands))
    return "\n".join(parts)


AS_TRAINED = ["network_settings", "reference_settings"]
"""What an evaluation shares with its training if it is of the same network, devices and data."""
TRAINING = ["method", "network_settings", "method_settings"]
"""What is equal in trainings that differ only in the seed."""


def _of_the_test_set(settings: str) -> str:
    """Reference settings without those of the training data, and those that are null."""
    said = json.loads(settings).items()
    beside = [f"data.{key}" for key in BESIDE_TEST_DATA]
    return json.dumps({key: one for key, one in said if one is not None and key not in beside})


def _best_known(runs: pd.DataFrame) -> pd.Series:
    """Of a training and its evaluations: the lowest found, the highest proven, and the commands of both."""
    lowest = runs.loc[runs.loc[runs["attack"] != SAMPLED, "attacked_accuracy"].idxmin()]
    proven = runs.loc[runs["certified_accuracy"].fillna(-1).idxmax()]
    best = lowest.copy()
    best["certified_accuracy"] = proven["certified_accuracy"]
    evaluations = [run for run in (lowest, proven) if run["kind"] == "evaluate"]
    best["commands"] = [_on(run["training"], run["command"]) for run in evaluations]
    return best


def _on(training: str, command: str) -> str:
    """An evaluation's command, given the run where it lies now."""
    try:
        words = shlex.split(command)
    except ValueError:  # a foreign record's
        return command
    return shlex.join(f"run={Path(training).as_posix()}" if word.startswith("run=") else word for word in words)


HEAD = """
| method | epochs | seeds | clean | proven | attacked | commit | networks |
|---|---|---|---|---|---|---|---|
"""


def _heading(run: pd.Series, differs: str) -> str:
    import pandas as pd

    bits = "float" if pd.isna(run["weight_bits"]) else f"{run['weight_bits']} bits"
    said = f"{run['weights_perturbed']:,} weights, {bits}; {run['samples']:,} test images"
    said += f"; `{differs}`" if differs else ""
    return f"## {run['network']} on {run['dataset']}, th_g {run['thg']:g}\n\n{said}.\n"


class _Row(NamedTuple):
    """Of trainings that differ only in the seed; of one seed, the lowest counts."""

    attacked: float
    text: str
    commands: list[str]
    """Of the first seed: that of the training, and those of evaluations that found or proved more."""


def _row(runs: pd.DataFrame, seen_from: Path | None) -> _Row:
    runs = runs.sort_values(["seed", "attacked_accuracy"], kind="stable").drop_duplicates("seed")
    first = runs.iloc[0]
    cells = [
        f"`{first['method']}`",
        str(first["epochs"]),
        str(len(runs)),
        *(_percent(runs[name]) for name in ("clean_accuracy", "certified_accuracy", "attacked_accuracy")),
        ", ".join(dict.fromkeys(map(_short, runs["trained_commit"].fillna("")))),
        ", ".join(_link(Path(folder), seen_from) for folder in runs["training"]),
    ]
    commands = dict.fromkeys([Record.load(Path(first["training"])).command, *first["commands"]])
    return _Row(float(runs["attacked_accuracy"].mean()), f"| {' | '.join(cells)} |\n", list(commands))


def _short(commit: str) -> str:
    """Of a commit; that the code was changed since is not left out."""
    return commit[:7] + ("-dirty" if commit.endswith("-dirty") else "")


def _percent(shares: pd.Series) -> str:
    """The mean, and over several seeds the standard deviation."""
    if shares.isna().any():
        return "-"
    spread = f" ± {100 * shares.std():.2f}" if len(shares) > 1 else ""
    return f"{100 * shares.mean():.2f}{spread}"


def _link(folder: Path, seen_from: Path | None) -> str:
    if seen_from is None:
        return folder.name
    where = os.path.relpath(folder, seen_from)
    return f"[{folder.name}]({Path(where).as_posix()})"


PAGE = """# Leaderboard

How well networks hold: those of [zoo/]({zoo}), attacked by `attack=ensemble` on the whole test set. Percent, mean
± standard deviation over the seeds of the training. No chip within th_g is below *proven* (see
[certificate](certificate.md)), and *attacked* is the lowest that was found: the worst chip is between the two.
Without a number, nothing was proven: no proof was tried, or the network has parts without a rule.

`worstcase.load("lenet-mnist5k-universal_at-0.03")` loads one in Python. This attacks it again with another seed:

    python -m src.evaluate run=zoo/lenet-mnist5k-universal_at-0.03 seed=1

A row of one seed may be lucky: over three seeds 30 epochs of `universal_at` on ConvNet have 69.5 ± 1.2 at 0.01
and 43.3 ± 2.4 at 0.03, and 60 epochs 47.6 ± 0.8 there ([training](training.md#convnet-on-cifar-10)), with the
settings of `universal_at_deep`.

**Your network in this table.** It must be a model of worstcase or torchvision: networks and data of your own code
cannot be published. Train it with `python -m src.train suite=single attack@test_attack=ensemble`.
`python -m worstcase.zoo FOLDER NAME` then adds the run to zoo/ and writes this page anew; send both as a pull
request. We load the weights and attack them with a fresh seed. `python -m worstcase.zoo` writes the page alone.

"""


def write_page(page: Path, zoo: Path = Path("zoo")) -> None:
    """Write the leaderboard of the networks in a folder.

    Raises:
        FileNotFoundError: it has none.
    """
    if next(zoo.glob(f"*/{WEIGHTS}"), None) is None:
        raise FileNotFoundError(f"no networks in {zoo}; run it in a clone of the repository")
    head = PAGE.replace("{zoo}", Path(os.path.relpath(zoo, page.parent)).as_posix())
    write_whole(page, (head + leaderboard([zoo], seen_from=page.parent)).encode())
