"""What an evaluation of one network on its devices found: printed, recorded, and kept in a folder."""

from __future__ import annotations

import hashlib
import html
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worstcase.attacks import AttackResult
from worstcase.certificate import Certificate
from worstcase.chip import float32
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.tolerance import NAME, has_weights, plain
from worstcase.digests import DIGITS, add_tensors
from worstcase.evaluation.measured import Chip
from worstcase.evaluation.record import FILES, IN_PYTHON, RECORD, AttackRecord, Record
from worstcase.evaluation.record_parts import outside, standing
from worstcase.whole_file import write_whole

PERTURBATION = "perturbation.safetensors"
WORST_CHIP = "worst_chip.safetensors"

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """The attacks' results and the proof for one network; `print` shows them, `save` keeps them.

    Raises:
        RuntimeError: certified <= attacked <= clean does not hold.
    """

    crossbar: Crossbar = field(repr=False)
    attacks: list[AttackResult]
    """One for each attack and th_g, in the order of the attacks and of rising th_g."""
    flags: list[str]
    """Reasons not to believe them; see `worstcase.evaluation.flags`."""
    diagnosis: dict[str, Any] | None = field(repr=False)
    """Explains the worst chip at the largest th_g; see `worstcase.evaluation.diagnosis.diagnose`."""
    chip: Chip | None = None
    """The chip that was read back, if one was given."""
    certificates: list[Certificate] = field(default_factory=list)
    """One for each th_g, in rising order; empty if nothing is proven."""
    not_certified: str | None = None
    """Why nothing is proven."""
    certified_up_to: dict[float, float | None] | None = None
    """See `worstcase.certificate.largest_thgs`; None if it was not asked for, or nothing is proven."""
    device: str = field(init=False, repr=False)
    """What computed; Lightning moves a network back to the CPU later."""
    _worst_chip: dict[str, Tensor] | ValueError = field(init=False, repr=False)
    _weights: str | None = field(init=False, repr=False)
    """A digest of the network's state dict; None if it has none."""

    def __post_init__(self) -> None:
        for found in self.attacks:
            proven = max((of.accuracy for of in self.certificates if of.thg >= found.thg), default=0.0)
            if not proven <= found.accuracy <= self.clean_accuracy:
                raise RuntimeError(
                    f"{found.attack} found {found.accuracy}, which is not between {proven}, certified at its th_g "
                    f"{found.thg:g}, and {self.clean_accuracy}, as programmed: please report this network"
                )
        self.device = _name_of(next(self.crossbar.net.parameters()).device)
        try:
            self._worst_chip = self.crossbar.chip(self.worst.perturbation)  # now: the network may be trained on
        except ValueError as error:
            self._worst_chip = error
        except Exception as error:  # whatever a network's own state dict raises
            self._worst_chip = ValueError(f"no state dict holds the chip: {error}")
        self._weights = _digest(self.crossbar)

    @property
    def clean_accuracy(self) -> float:
        """The accuracy as programmed."""
        return max(found.clean_accuracy for found in self.attacks)

    @property
    def worst(self) -> AttackResult:
        """The result with the lowest accuracy."""
        return min(self.attacks, key=lambda found: found.accuracy)

    @property
    def attacked_accuracy(self) -> float:
        """The lowest that was found: an upper bound of the worst case."""
        return self.worst.accuracy

    @property
    def certified_accuracy(self) -> float | None:
        """Proven: no chip in the box of the largest th_g is below. None if nothing is proven."""
        return self.certificates[-1].accuracy if self.certificates else None

    @property
    def samples(self) -> int:
        """Number of samples in the reference set."""
        return self.attacks[0].samples

    @property
    def thg(self) -> float:
        """The largest that was attacked."""
        return max(found.thg for found in self.attacks)

    def worst_chip(self) -> dict[str, Tensor]:
        """The network's state dict with the weights of the worst chip, which plain PyTorch loads.

        Raises:
            ValueError: no state dict holds the chip, see `Crossbar.chip`; `worst` has its deviations.
        """
        if isinstance(self._worst_chip, ValueError):
            raise self._worst_chip
        return self._worst_chip

    def record(self, *, chip_file: str | None = None, **described: Any) -> Record:
        """All of it in plain types.

        Args:
            chip_file: where the chip was read from, relative to the record.
            described: fields of `Record` that only the caller knows, such as its command, network and data set.
        """
        crossbar, coverage = self.crossbar, self.crossbar.coverage()
        with crossbar.bounded_by(self.thg):
            tolerance = crossbar.tolerance
        said: dict[str, Any] = {
            "kind": "evaluate",
            "source_run": None,
            "command": IN_PYTHON,
            "config": {
                "thg": plain(tolerance),
                "full_scale": crossbar.full_scale,
                "weights": self._weights,
                **_of_devices(crossbar),
            },
            "seed": self.attacks[0].seed,
            "method": None,
            "model": type(crossbar.net).__name__,
            "dataset": "its own",
            "data_digest": self.attacks[0].data_digest,
            "reference": "test",
            "train_seconds": None,
            "epochs": None,
        }
        return Record(
            **(said | described),
            attacks=[
                AttackRecord.of(found, file) for found, file in zip(self.attacks, self._files(), strict=True)
            ],
            flags=self.flags,
            diagnosis=self.diagnosis,
            clean_accuracy=self.clean_accuracy,
            certified_accuracy=self.certified_accuracy,
            certified=[
                {
                    "method": of.method,
                    "thg": of.thg,
                    "accuracy": of.accuracy,
                    "seconds": of.seconds,
                    "note": of.note,
                }
                for of in self.certificates
            ],
            certified_up_to=[
                {"accuracy": accuracy, "thg": thg} for accuracy, thg in (self.certified_up_to or {}).items()
            ],
            not_certified=self.not_certified,
            chip=self.chip
            and {
                "file": chip_file,
                "accuracy": self.chip.accuracy,
                "failed": self.chip.failed,
                "failed_by_array": self.chip.failed_by_array,
            },
            samples=self.samples,
            decisions=self.attacks[0].decisions,
            thg=self.thg,
            tolerance=None if isinstance(tolerance, float) else plain(tolerance),
            dtype=str(next(crossbar.net.parameters()).dtype).removeprefix("torch."),
            full_scale=crossbar.full_scale,
            weight_bits=crossbar.weight_bits,
            activation_bits=crossbar.activation_bits,
            parameters=coverage.values,
            parameters_perturbed=coverage.weights,
            threads=torch.get_num_threads(),
            device=self.device,
        )

    def save(self, folder: str | Path, record: Record | None = None) -> None:
        """Leave the perturbations, the worst chip, the figures, and at last the record in a folder.

        The worst chip is a state dict, ``worst_chip.safetensors``; where no state dict holds it, the log says why.
        Where weights have tolerances of their own, these are left too: ``tolerances.safetensors``.

        Args:
            folder: made if it is not there.
            record: of this evaluation; None: as `record` makes it.

        Raises:
            ValueError: the record is invalid, or the folder holds the record of a training, which stays.
        """
        from safetensors.torch import save

        from worstcase.chip.tolerance_file import save_tolerances
        from worstcase.evaluation.figures import evaluation_figures

        folder = Path(folder)
        record = record or self.record()
        record.check(folder)
        if record.kind != "train" and _holds_a_training(folder):
            raise ValueError(f"{folder} holds the record of a training; choose another folder, or one below it")
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RECORD).exists() or (folder / PERTURBATION).exists():
            # no record describes files of another
            for name in (RECORD, *FILES):
                for old in list(folder.glob(name)):
                    old.unlink()
        with self.crossbar.bounded_by(self.thg):
            if has_weights(tolerances := self.crossbar.tolerance):
                save_tolerances(folder / NAME, tolerances)  # type: ignore[arg-type]
        for found, file in zip(self.attacks, self._files(), strict=True):
            write_whole(folder / file, save({key: d.contiguous() for key, d in found.perturbation.items()}))
        (folder / WORST_CHIP).unlink(missing_ok=True)
        try:
            write_whole(
                folder / WORST_CHIP,
                save({name: t for name, t in self.worst_chip().items() if isinstance(t, Tensor)}),
            )
        except ValueError as error:
            log.info("no %s: %s", WORST_CHIP, error)
        try:
            for name, figure in evaluation_figures(record).items():
                figure.savefig(folder / f"{name}.png", dpi=150)
        except Exception:  # the record matters more, and holds all that they show
            log.exception("figures could not be drawn")
        record.save(folder)

    def _files(self) -> list[str]:
        """File names of the perturbations; the worst one's is always the same."""
        return [
            PERTURBATION
            if found is self.worst
            else f"perturbation-{i}-{found.attack}-thg{found.thg:g}.safetensors"
            for i, found in enumerate(self.attacks, 1)
        ]

    def __str__(self) -> str:
        found = f"{self.attacked_accuracy:.2%} (found by {self.worst.attack})"
        bracket = f"between {self.certified_accuracy:.2%} (proven) and" if self.certified_accuracy else "at most"
        unit = "of each layer's largest weight" if self.crossbar.full_scale == "layer_max" else "in weight units"
        stuck = ", as far as a stuck weight may be off" if self.crossbar.stuck else ""
        lines = [f"clean {self.clean_accuracy:.2%}; worst chip {bracket} {found}"]
        lines += [f"th_g {self.thg:g} {unit}{stuck}", str(self.crossbar.coverage())]
        lines += [
            f"{one.attack} at th_g {one.thg:g}: {one.accuracy:.2%}, {one.passes:.0f} passes, {one.seconds:.1f} s"
            for one in self.attacks
        ]
        lines += [
            f"{one.method} at th_g {one.thg:g}: at least {one.accuracy:.2%}, {one.seconds:.1f} s"
            for one in self.certificates
        ]
        lines += [of.note for of in self.certificates[-1:] if of.note]
        lines += [
            f"{accuracy:.0%} is proven up to th_g {thg:.3g} (interval)" if thg else f"{accuracy:.0%} is not proven"
            for accuracy, thg in (self.certified_up_to or {}).items()
        ]
        if self.not_certified:
            lines.append(f"nothing is proven: {self.not_certified}")
        if self.chip:
            where = standing(self.chip.accuracy, self.chip.failed, self.certified_accuracy, self.attacked_accuracy)
            lines.append(f"this chip: {self.chip.accuracy:.2%}, {where}; {outside(self.chip.failed_by_array)}")
        return "\n".join([*lines, *(f"flag: {flag}" for flag in self.flags)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def _name_of(device: torch.device) -> str:
    """Of what computes, with what it rounds the factors of float32 convolutions to."""
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device) + (", TF32" if "tf32" in float32.of_cudnn() else "")


def _digest(crossbar: Crossbar) -> str | None:
    """Of the names, types and values in the state dict; None where a network's own cannot be read."""
    digest = hashlib.sha256()
    try:
        add_tensors(digest, {n: t for n, t in crossbar.state_dict().items() if isinstance(t, Tensor)})
    except Exception:  # whatever a network's own state dict raises
        return None
    return digest.hexdigest()[:DIGITS]


def _holds_a_training(folder: Path) -> bool:
    try:
        return Record.load(folder).kind == "train"
    except (FileNotFoundError, ValueError):
        return False


def _of_devices(crossbar: Crossbar) -> dict[str, Any]:
    """What is not as it is without a word, for a record's configuration."""
    stuck = {name: int((~where.isnan()).sum()) for name, where in crossbar.stuck.items()}
    mapping = {} if crossbar.mapping == DeviceMapping() else {"mapping": asdict(crossbar.mapping)}
    said = {name: patterns for name, patterns in crossbar.patterns.items() if patterns not in ([], ["*"])}
    return said | mapping | ({"stuck": stuck} if stuck else {})
