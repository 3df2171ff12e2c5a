"""Published networks: python -m worstcase.zoo.

A network of the zoo is the folder of a training run without what only the training needed: the record, the weights
that were kept, and the worst chips that its attacks found, so that every number can be checked.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from worstcase.chip.tolerance import NAME
from worstcase.digests import digest_of_files
from worstcase.evaluation.record import EVALUATIONS, RECORD, WEIGHTS, Record, finished_runs, weights_of
from worstcase.evaluation.settings import BESIDE_TEST_DATA, is_of_own_code
from worstcase.whole_file import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from worstcase.runs import Run

PACKAGE = Path(__file__).parent
ZOO = next((place for place in (PACKAGE / "networks", PACKAGE.parents[1] / "zoo") if place.is_dir()), Path("zoo"))
"""The folder of the networks: of the installed package, or of the repository."""
JUDGE = "ensemble"
"""The attack that each network has to stand; what others found lower counts too."""
SAMPLED = "monte_carlo"
"""Not an attack: its chips are drawn at random."""


def names() -> list[str]:
    """The networks that `load` knows.

    Example:
        >>> "lenet-mnist5k-universal_at-0.03" in names()
        True
    """
    return sorted(file.parent.name for file in ZOO.glob(f"*/{WEIGHTS}"))


def load(name: str, *, data_dir: str | Path | None = None) -> Run:
    """Load a published network with its th_g, its data and its record.

    Args:
        name: one of `names`: the network, its data, the training method, th_g.
        data_dir: the folder of its data set; None: ``data``.

    Raises:
        ValueError: there is no such network.

    Example:
        >>> run = load("lenet-mnist5k-universal_at-0.03")
        >>> run.crossbar.thg, run.record.method
        (0.03, 'universal_at')
    """
    from worstcase.runs import load_run

    if name not in names():
        raise ValueError(f"no network {name!r} in the zoo; it has {', '.join(names())}")
    return load_run(ZOO / name, data_dir=data_dir)


def publish(run: Path, name: str, zoo: Path = Path("zoo")) -> Path:
    """Add a training run and its evaluations to the zoo.

    Args:
        run: its folder.
        name: of the network in the zoo.
        zoo: the folder of the networks.

    Returns:
        The folder of the network.

    Raises:
        FileExistsError: the zoo has a network of that name.
        FileNotFoundError: no training finished there, or a file of it is missing.
        ValueError: the name is not one of a folder; the run was not attacked by the ensemble, its network or data
            are the user's own, a file of it is a symbolic link, or a chip cannot be read.
    """
    from safetensors.torch import save

    from worstcase.runs import load_run

    if not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
        raise ValueError(f"{name!r} is no name for a network: take letters, digits, and any of . _ -")
    record = Record.load_training(run)
    if is_of_own_code(record.config):
        raise ValueError(
            f"{run}: networks and data of your own code cannot be published; "
            "the zoo holds models of worstcase and torchvision, and data sets of worstcase"
        )
    records = {run: record, **dict(finished_runs([run / EVALUATIONS]))}
    if all(found.attack != JUDGE for one in records.values() for found in one.attacks):
        raise ValueError(f"{run} was not attacked by the ensemble: python -m src.evaluate run={run}")
    for file in (run / RECORD, weights_of(run)):
        _check_no_link(file, run)
    folder = zoo / name
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another name, or delete it")
    weights = {key: t.contiguous() for key, t in load_run(run).crossbar.state_dict().items()}
    kept = digest_of_files([weights_of(run)])
    zoo.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=zoo) as beside:  # a network is there whole, or not at all
        whole = Path(beside, name)
        whole.mkdir()
        write_whole(whole / WEIGHTS, save(weights))
        published = digest_of_files([whole / WEIGHTS])
        for place, one in records.items():
            if one.weights_digest:
                one.weights_digest = published
            if "weights" in one.config and one.config["weights"] == kept:
                one.config["weights"] = published
            _check_files(one, place, run)
            _publish_record(one, place, whole / place.relative_to(run))
        whole.rename(folder)
    return folder


def _check_files(record: Record, place: Path, run: Path) -> None:
    """Refuse what would take another file along, or is no chip: the run may be somebody else's."""
    from worstcase.evaluation.measured import read_chip

    chips = {found.perturbation for found in record.attacks}
    for name in (RECORD, NAME, *chips):
        _check_no_link(place / name, run)
    for chip in chips:
        if chip == WEIGHTS or not chip.endswith(".safetensors"):
            raise ValueError(f"{place / chip} is not the file of a chip")
        read_chip(place / chip)


def _check_no_link(file: Path, run: Path) -> None:
    if file.resolve() != run.resolve() / file.relative_to(run):
        raise ValueError(f"{file} is, or is behind, a symbolic link, which cannot be published")


def _publish_record(record: Record, place: Path, copy: Path) -> None:
    """A record and its chips, without the folders of the machine that made them."""
    copy.mkdir(parents=True, exist_ok=True)
    for chip in {found.perturbation for found in record.attacks}:
        shutil.copy(place / chip, copy / chip)
    if isinstance(thg := record.config.get("thg"), dict) and "digest" in thg:
        shutil.copy(place / NAME, copy / NAME)
        thg["file"] = NAME
    record.config = _without_folders(record.config)
    for settings in (record.config, record.config["dataset"]):
        if "data_dir" in settings:
            settings["data_dir"] = "data"
    if record.source_run:
        record.config["run"] = record.source_run
    if record.chip:
        record.chip = _without_folders(record.chip)
    record.command = shlex.join(_without_folders(shlex.split(record.command)))
    if record.sweep:
        words = [word for word in shlex.split(record.sweep) if not word.startswith("hydra.sweep.dir=")]
        record.sweep = shlex.join(_without_folders(words))
    record.save(copy)


FOLDERS = re.compile(r"(?<![^=:,'\"\[])(?:~|\.\.)?/(?:[^/,'\"\]]*/)*(?=[^/,'\"\]])")
"""Of a path that does not begin in the working folder: all but its last part."""


def _without_folders(said: Any) -> Any:
    """A setting, a word of a command, or several of them, without the machine's folders.

    Example:
        >>> _without_folders({"init_from": "/home/me/start.pt", "words": ["chip='../a=b'", "case=paper/lenet"]})
        {'init_from': 'start.pt', 'words': ["chip='a=b'", 'case=paper/lenet']}
    """
    if isinstance(said, dict):
        return {key: _without_folders(value) for key, value in said.items()}
    if isinstance(said, list):
        return [_without_folders(value) for value in said]
    return FOLDERS.sub("", said) if isinstance(said, str) else said


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

A row of one seed may be lucky: over three seeds ConvNet has 69.5 ± 1.2 at 0.01 and 43.3 ± 2.4 at 0.03
([training](training.md#convnet-on-cifar-10)). Its `universal_at` has the settings of `universal_at_deep`.

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worstcase.zoo", description="Publish a network in zoo/.")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a training run; none: write the page alone")
    parser.add_argument("name", nargs="?", help="of the network in the zoo, such as lenet-mnist-universal_at-0.03")
    parser.add_argument("--page", type=Path, default=Path("docs/leaderboard.md"), help="(docs/leaderboard.md)")
    given = parser.parse_args()
    if given.run and not given.name:
        parser.error("a run needs a name: python -m worstcase.zoo FOLDER NAME")
    try:
        if given.run:
            print(publish(given.run, given.name))
        write_page(given.page)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(given.page)


if __name__ == "__main__":
    main()
