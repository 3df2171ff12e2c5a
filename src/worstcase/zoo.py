"""Published networks: python -m worstcase.zoo.

A network of the zoo is the folder of a training run without what only the training needed: the record, the weights
that were kept, and the worst chips that its attacks found, so that every number can be checked.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from worstcase.chip.tolerance import NAME
from worstcase.digests import digest_of_files
from worstcase.evaluation.finished_runs import finished_runs
from worstcase.evaluation.record import EVALUATIONS, RECORD, WEIGHTS, Record, weights_of
from worstcase.evaluation.settings import is_of_own_code
from worstcase.leaderboard import JUDGE, write_page
from worstcase.whole_file import write_whole

if TYPE_CHECKING:
    from worstcase.runs import Run

PACKAGE = Path(__file__).parent
ZOO = next((place for place in (PACKAGE / "networks", PACKAGE.parents[1] / "zoo") if place.is_dir()), Path("zoo"))
"""The folder of the networks: of the installed package, or of the repository."""


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m worstcase.zoo", description="Publish a network in zoo/.")
    parser.add_argument("run", nargs="?", type=Path, help="folder of a training run; none: write the page alone")
    parser.add_argument("name", nargs="?", help="of the network in the zoo, such as lenet-mnist-universal_at-0.03")
    parser.add_argument("--page", type=Path, default=Path("docs/leaderboard.md"), help="(docs/leaderboard.md)")
    given = parser.parse_args()
    if given.run and not given.name:
        parser.error("a run needs a name: python -m worstcase.zoo FOLDER NAME")
    try:
        if not (place := given.page.parent).is_dir():
            raise FileNotFoundError(f"no folder {place} for the page; run it in a clone, or say --page")
        if given.run:
            print(publish(given.run, given.name))
        write_page(given.page)
        shown = not given.run or f"[{given.name}](" in given.page.read_text("utf-8")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(given.page)
    if not shown:
        sys.exit(f"error: it has no row of {given.name}: the ensemble did not attack it on its own data")


if __name__ == "__main__":
    main()
