"""Training that need not be done again: of a run that was killed, and of the same network at another th_g."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worstcase.app.job import is_first_process
from worstcase.app.state import shown
from worstcase.evaluation.record import CHECKPOINT, LAST, write_json
from worstcase.evaluation.settings import SHARED, trains_by_own_code, trains_without_thg, without_place
from worstcase.lock import locked

TRAINED = CHECKPOINT.parent / "trained.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A training that has ended; its file lies beside the checkpoint of its best epoch."""

    seconds: float
    epochs: int
    validation: float
    """The monitored metric of that epoch."""
    training: str
    """A digest of all settings that it depends on."""
    commit: str | None = None
    """That it was trained at."""

    def save(self, folder: Path) -> None:
        write_json(folder / TRAINED, asdict(self))

    @classmethod
    def load(cls, folder: Path, settings: Mapping[str, Any]) -> Trained | None:
        """The finished training of these settings in a folder; None if there is none."""
        if not (folder / TRAINED).is_file() or not zipfile.is_zipfile(folder / CHECKPOINT):
            return None
        try:
            trained = cls(**json.loads((folder / TRAINED).read_text()))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        return trained if trained.training == digest(settings) else None


def digest(settings: Mapping[str, Any]) -> str:
    """Equal for jobs that train the same network."""
    told = {key: value for key, value in without_place(settings).items() if key not in SHARED}
    if trains_without_thg(settings):
        del told["thg"]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@contextmanager
def training_of(folder: Path, settings: Mapping[str, Any]) -> Iterator[Trained | None]:
    """Yields a training that this job takes from another; None where it trains, or continues its own.

    A network that trains without th_g is trained once for all th_g, and any once for all ways to share out pulses:
    the first job that needs it trains within the block. The others, in folders beside it, wait and take a copy.
    With code of the user's, such as a method, each job trains: settings only name the code, which may change.
    """
    for_several = trains_without_thg(settings) or settings["pulses"] is not None
    if (folder / LAST).is_file() or trains_by_own_code(settings) or not for_several:
        yield None
        return
    if (trained := Trained.load(folder, settings)) or not is_first_process():
        yield trained
        return
    lock = folder.parent / f".training-{digest(settings)[:8]}.lock"
    with locked(lock, wait=True):
        yield _copied(folder, settings)
        lock.unlink(missing_ok=True)


def _copied(folder: Path, settings: Mapping[str, Any]) -> Trained | None:
    for file in sorted(folder.parent.glob(f"*/{TRAINED}")):
        other = file.parent.parent
        if trained := Trained.load(other, settings):
            log.info("trained already in %s", shown(other))
            (folder / CHECKPOINT).parent.mkdir(exist_ok=True)
            shutil.copyfile(other / CHECKPOINT, folder / CHECKPOINT)
            trained.save(folder)
            return trained
    return None


def unfinished(folder: Path) -> Path | None:
    """The last checkpoint that this run left when it was killed; None where it has to begin anew."""
    last = folder / LAST
    if not last.is_file():
        return None
    # a checkpoint may be cut off if the temporary folder, where it is begun, is on another disk
    cut = next((f for f in (last, folder / CHECKPOINT) if f.exists() and not zipfile.is_zipfile(f)), None)
    if cut is None:
        log.info("going on from %s", last)
        return last
    log.warning("%s was cut off when it was written, so training begins anew", cut)
    if is_first_process():
        last.unlink(missing_ok=True)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return None


def go_on_with_metrics(loggers: list, checkpoint: Path) -> None:
    """Lightning's CSV logger begins its file anew: give it the rows up to the checkpoint again."""
    import torch
    from lightning.pytorch.loggers import CSVLogger

    steps = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    for logger in loggers:
        if isinstance(logger, CSVLogger) and (file := Path(logger.log_dir, "metrics.csv")).is_file():
            try:
                with file.open(newline="") as lines:
                    rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(lines)]
                logger.experiment.metrics = [row for row in rows if int(row["step"]) < steps]
            except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
                log.warning("%s is no table of metrics any more, so it begins anew", file)
