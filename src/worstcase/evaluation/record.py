"""The record of a run, ``results.json``: its schema, and how it is read and written.

Needs no PyTorch, so that finished runs are listed fast.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import TypeAdapter, ValidationError

from worstcase.evaluation.record_parts import (
    Config,
    Diagnosis,
    Measured,
    Proven,
    ProvenUpTo,
    Tolerances,
    Training,
    contradiction,
)
from worstcase.found import CHECKED, Count, FileName, Found, Name, Number, Positive, Seed, Shape, Share
from worstcase.whole_file import write_whole

SCHEMA_VERSION = 1
RECORD = "results.json"
CHECKPOINT = Path("checkpoints", "best.ckpt")
WEIGHTS = "weights.safetensors"
"""What a published run holds in place of the checkpoint: the state dict of its crossbar."""
FILES = (
    "perturbation*.safetensors",
    "worst_chip.safetensors",
    "confusion.png",
    "confidence.png",
    "perturbation.png",
    "layers.png",
    "selective_write_verify.png",
    "accuracy_over_thg.png",
    "search_for_c*.png",
    "monte_carlo*.png",
)
"""What an evaluation leaves beside its record, as patterns."""
IN_PYTHON = "worstcase.evaluate"
"""In place of the command, of an evaluation that was made in Python."""
EVALUATIONS = "evaluations"
"""The folder of a training run that holds its evaluations."""
LAST = Path("checkpoints", "last.ckpt")
"""Checkpoint of the newest epoch, from which a killed run resumes."""


@cache
def git_commit() -> str | None:
    """The commit of the library's own checkout, with '-dirty' if it was changed; None outside a checkout.

    It is looked up once: a process keeps running the code that it started with.
    """
    here = Path(__file__).parent
    git = ["git", "-C", str(here)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def weights_of(folder: Path) -> Path:
    """The file of the weights that a training run kept."""
    published = folder / WEIGHTS
    return published if published.is_file() else folder / CHECKPOINT


@dataclass(kw_only=True)
class AttackRecord(Found):
    """One attack in a record."""

    __pydantic_config__: ClassVar = CHECKED

    perturbation: FileName
    """File of the perturbation, beside the record."""

    @classmethod
    def of(cls, found: Found, file: str) -> AttackRecord:
        return cls(**{f.name: getattr(found, f.name) for f in fields(Found)}, perturbation=file)


@dataclass(kw_only=True)
class Record:
    """Everything about a finished run. If a folder has a record, the run there is finished.

    Raises:
        RuntimeError: the record contradicts itself. certified <= accuracy <= clean must hold for each attack, its
            perturbation must be within its th_g, and the diagnosis must be consistent.
    """

    __pydantic_config__: ClassVar = CHECKED

    kind: Literal["train", "evaluate"]
    source_run: str | None
    """For an evaluation: the folder of the training run, relative to this record's."""
    command: str
    sweep: str | None = None
    """Command of the sweep that the run is a job of, such as ``python -m src.train -m seed=0,1``."""
    config: Annotated[dict[str, Any], Shape(Config)]
    seed: Seed
    method: Name | None
    """Training method; None if this project did not train the network."""
    model: Name
    dataset: Name
    data_digest: Name | None = None
    """Of the reference set, where only the user's code makes the data; None: settings identify them."""
    reference: Name
    """The split that was attacked and scored."""
    samples: Positive
    """Number of samples in the reference set."""
    decisions: Positive
    """Number of right-or-wrong answers that accuracies are shares of: one per sample."""
    dtype: str
    thg: Number
    """The largest th_g that was attacked: no weight may deviate by more, in units of its full scale."""
    tolerance: Annotated[Any, Shape(Tolerances | None)] = None
    """Of a device by its conductance, by array, or both; None: the same for all."""
    full_scale: Annotated[str, Shape(Literal["layer_max", "unit"])]
    weight_bits: Positive | None = None
    activation_bits: Positive | None = None
    clean_accuracy: Share
    attacks: Annotated[list[AttackRecord], MinLen(1)]
    certified_accuracy: Share | None = None
    """What no chip is proven to be below at the largest th_g; None: nothing is proven."""
    certified: Annotated[list[dict[str, Any]], Shape(list[Proven])] = field(default_factory=list)
    """The same at each th_g."""
    not_certified: str | None = None
    """Why nothing is proven."""
    certified_up_to: Annotated[list[dict[str, Any]], Shape(list[ProvenUpTo])] = field(default_factory=list)
    """The largest th_g at which a share of the decisions is proven; empty if nobody asked."""
    chip: Annotated[Any, Shape(Measured | None)] = None
    """A chip that was read back; None if none was given."""
    flags: list[str] = field(default_factory=list)
    diagnosis: Annotated[Any, Shape(Diagnosis | None)] = None
    """Of the worst chip at the largest th_g; None if it was not diagnosed."""
    train_seconds: Number | None
    epochs: Count | None
    validation: float | None = None
    """Of training: the value of its ``method.monitor`` on the validation split, at the epoch that was kept."""
    parameters: Positive
    parameters_perturbed: Count
    threads: Positive
    """Number of PyTorch's CPU threads; with another number the last digits may differ."""
    device: str | None = None
    """What computed: ``cpu``, or a GPU's name, with TF32 if convolutions were in it. None in older records."""
    attacked_accuracy: float = field(init=False)
    """The lowest that this run's attacks found."""
    schema_version: int = SCHEMA_VERSION
    git_commit: str | None = field(default_factory=git_commit)
    trained_commit: str | None = None
    """At which the network was trained, which another job may have done; None in evaluations and older records."""
    weights_digest: Name | None = None
    """Of the file of weights that a training kept; None in evaluations (see `config`) and older records."""
    versions: dict[str, str] = field(default_factory=lambda: installed_versions())

    def __post_init__(self) -> None:
        self.attacked_accuracy = min(found.accuracy for found in self.attacks)
        for found in self.attacks:
            if not (self.certified_accuracy or 0.0) <= found.accuracy <= self.clean_accuracy:
                raise RuntimeError(
                    f"{found.attack} found {found.accuracy}, which is not between the certified accuracy "
                    f"({self.certified_accuracy}) and the clean one ({self.clean_accuracy})"
                )
            if any(of["accuracy"] > found.accuracy for of in self.certified if of["thg"] >= found.thg):
                raise RuntimeError(f"{found.attack} found {found.accuracy}, but more is certified at its th_g")
            if not found.feasible or found.max_relative_perturbation > found.thg:
                raise RuntimeError(f"{found.attack} reports a perturbation outside th_g = {found.thg}")
        if self.chip and self.chip["failed"] != sum(self.chip["failed_by_array"].values()):
            raise RuntimeError("chip.failed is not the sum over its arrays")
        if self.chip and not self.chip["failed"] and self.chip["accuracy"] < (self.certified_accuracy or 0.0):
            raise RuntimeError(f"a chip in the box has {self.chip['accuracy']}, but more is certified")
        if self.diagnosis and (wrong := contradiction(self.diagnosis, {found.thg for found in self.attacks})):
            raise RuntimeError(f"diagnosis.{wrong}")

    def certified_at(self, thg: float) -> float | None:
        """What no chip in the box of a th_g is proven to be below: a larger box proves it too."""
        found = [of["accuracy"] for of in self.certified if of["thg"] >= thg]
        return max(found, default=self.certified_accuracy if thg <= self.thg else None)

    def save(self, folder: Path) -> None:
        """Write the record into a folder, atomically.

        Raises:
            ValueError: the record is invalid, so that it could not be read again.
        """
        self.check(folder)
        write_json(folder / RECORD, asdict(self))

    def check(self, folder: Path) -> None:
        """Check that the record can be read again, once it is in a folder.

        Raises:
            ValueError: it cannot.
        """
        try:
            _read(asdict(self))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the record of {folder} would be invalid: {_first_of(error)}") from None

    @classmethod
    def load(cls, folder: Path) -> Record:
        """Read a folder's record.

        Raises:
            FileNotFoundError: the folder has none, so no run finished there.
            ValueError: the file is not a record of this schema.
        """
        path = folder / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"no finished run in {folder}: it has no {RECORD}")
        try:
            content = json.loads(path.read_text())
            if not isinstance(content, dict):
                raise ValueError("it is not a JSON object")
            return _read(content)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} holds no record of a run: {_first_of(error)}") from None

    @classmethod
    def load_training(cls, folder: Path) -> Record:
        """Read the record of a training run.

        Raises:
            FileNotFoundError: the folder has none, so no run finished there.
            ValueError: the file is not a record, or the record of an evaluation.
        """
        record = cls.load(folder)
        if record.kind != "train":
            raise ValueError(
                f"{folder} holds an evaluation, not a training run; "
                f"results_frame([{str(folder)!r}]) reads its numbers"
            )
        return record


def _read(content: dict[str, Any]) -> Record:
    """Make a record from a file's content and check each field, and for a training what rebuilds its network."""
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is not {SCHEMA_VERSION}")
    rest = {key: value for key, value in content.items() if key != "attacked_accuracy"}
    record = _checked().validate_json(json.dumps(rest))
    if record.attacked_accuracy != content.get("attacked_accuracy"):
        raise ValueError("its attacked_accuracy is not the lowest of its attacks")
    if record.kind == "train":
        _checked_training().validate_python({"config": record.config}, strict=True)
    return record


def check_config(config: dict[str, Any]) -> None:
    """Check that a record can hold the settings of a job that has not begun.

    Raises:
        ValueError: the first that it cannot.
    """
    try:
        TypeAdapter(Config).validate_python(config, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        value = f"={first['input']}" if isinstance(first["input"], str | int | float) else ""
        raise ValueError(f"{'.'.join(map(str, first['loc']))}{value}: {first['msg']}") from None


@cache
def _checked() -> TypeAdapter[Record]:
    return TypeAdapter(Record)


@cache
def _checked_training() -> TypeAdapter[Any]:
    return TypeAdapter(Training)


def _first_of(error: Exception) -> str:
    """The error in one line; for a validation error, the first field that is wrong."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        fields = [str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
        return ": ".join(filter(None, [".".join(fields), first["msg"]]))
    return str(error)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as a file that is whole; NaN and infinity are refused."""
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def installed_versions() -> dict[str, str]:
    packages = ("worstcase", "torch", "torchvision", "lightning", "hydra-core")
    return {"python": sys.version.split()[0], **{package: version(package) for package in packages}}
