"""The evaluation of one network on its devices, and the one function that makes it."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worstcase.attacks import Attack, AttackResult, Ensemble, MonteCarlo
from worstcase.certificate import Certificate, Unsupported, certify, largest_thgs
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.tolerance import NAME, has_weights, plain
from worstcase.evaluation.diagnosis import diagnose
from worstcase.evaluation.flags import of_a_chip, of_the_network, red_flags
from worstcase.evaluation.heldout import attack_one_half
from worstcase.evaluation.measured import Chip, measure
from worstcase.evaluation.record import AttackRecord, Record
from worstcase.evaluation.record_parts import outside, standing
from worstcase.task import Loader

PERTURBATION = "perturbation.safetensors"
WORST_CHIP = "worst_chip.safetensors"
RANDOM_VERTICES = 4  # of the box, that attacks are compared with
CERTIFICATES = ("auto", "interval", "linear")
PASSES_OF_LINEAR = 100  # that linear bounds take at most, about

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """The attacks' results and the proof for one network; `print` shows them, `save` keeps them."""

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
        return self.crossbar.chip(self.worst.perturbation)

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
            "command": "worstcase.evaluate",
            "config": {"thg": plain(tolerance), "full_scale": crossbar.full_scale, **_of_devices(crossbar)},
            "seed": self.attacks[0].seed,
            "method": None,
            "model": type(crossbar.net).__name__,
            "dataset": "its own",
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
        )

    def save(self, folder: str | Path, record: Record | None = None) -> None:
        """Leave the perturbations, the worst chip, the figures, and at last the record in a folder.

        The worst chip is a state dict, ``worst_chip.safetensors``; where no state dict holds it, the log says why.
        Where weights have tolerances of their own, these are left too: ``tolerances.safetensors``.

        Args:
            folder: made if it is not there.
            record: of this evaluation; None: as `record` makes it.
        """
        from safetensors.torch import save_file

        from worstcase.chip.tolerance_file import save_tolerances
        from worstcase.evaluation.figures import evaluation_figures

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self.crossbar.bounded_by(self.thg):
            if has_weights(tolerances := self.crossbar.tolerance):
                save_tolerances(folder / NAME, tolerances)  # type: ignore[arg-type]
        record = record or self.record()
        for found, file in zip(self.attacks, self._files(), strict=True):
            save_file({key: d.contiguous() for key, d in found.perturbation.items()}, folder / file)
        (folder / WORST_CHIP).unlink(missing_ok=True)
        try:
            save_file(self.worst_chip(), folder / WORST_CHIP)
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
        lines = [f"clean {self.clean_accuracy:.2%}; worst chip {bracket} {found}", f"th_g {self.thg:g} {unit}"]
        lines.append(str(self.crossbar.coverage()))
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


def evaluate(
    crossbar: Crossbar,
    loader: Loader,
    attacks: Sequence[Attack] | None = None,
    *,
    thgs: Sequence[float] | None = None,
    chip: Mapping[str, Any] | None = None,
    chip_holds: str = "deviations",
    heldout: bool = False,
    diagnosis: str | None = "short",
    certificate: str | None = "auto",
    up_to: bool = False,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
    search_dtype: str | None = None,
) -> Evaluation:
    """Find how low the accuracy of a network can be on a chip that passed write-verify, from both sides.

    The training's test, ``python -m src.evaluate`` and a notebook all ask this function.

    Args:
        crossbar: the network; its th_g bounds the attacks, and is the same afterwards.
        loader: the reference set, batches (inputs, labels), the same in each pass; attacks minimise the accuracy
            over all of them.
        attacks: each is run at each th_g; None: the ensemble.
        thgs: in any order; each attack starts at a th_g from what it found at the next smaller one. Tolerances
            that differ by conductance or array are scaled, see `Crossbar.bounded_by`. None: the crossbar's own.
        chip: what was read back from a real chip, by array, in weight units, as tensors or NumPy arrays: scored
            too, and held against the box of the largest th_g, wherever it is.
        chip_holds: ``deviations`` from the programmed weights, or ``weights``: see
            `worstcase.evaluation.measured.measure`.
        heldout: also attack one half of the reference set and score the other.
        diagnosis: of the worst chip at the largest th_g: ``short``, ``full`` (which also attacks some of the
            weights alone), or None.
        certificate: what proves an accuracy that no chip is below, at each th_g: ``interval`` or ``linear``, see
            `worstcase.certificate.certify`; ``auto``, linear bounds if the attacks at this th_g took 100 passes or
            more, so that the proof costs no more than they did, else intervals; or None. Where a part of the
            network has no linear rule intervals prove, and a note says so; where it has none at all nothing is
            proven, and the result's ``not_certified`` names it.
        up_to: also search for the largest th_g at which 99, 95 and 90 % are proven, by intervals.
        seed: of what attacks draw.
        folder: where an attack that can be resumed keeps its state.
        progress: a bar on a terminal and in a notebook, a line now and then elsewhere.
        search_dtype: ``bfloat16``, in which attacks then follow gradients; see `worstcase.attacks.Attack`.
            Accuracies are counted, and proofs made, in the network's own.

    Raises:
        ValueError: a setting, the reference set, the network or the chip cannot be right; see the attacks.

    Cost: the attacks' passes, 6 for random vertices, 2 for a short diagnosis, 3 to 5 for each certificate by
    intervals, up to 100 by linear bounds, and one for a chip.

    Example:
        >>> import torch
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.4)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> images, labels = torch.tensor([[1.0, 0.9], [5.0, 0.0]]), torch.tensor([0, 0])
        >>> result = evaluate(crossbar, [(images, labels)], progress=False)
        >>> result.certified_accuracy, result.attacked_accuracy, result.clean_accuracy
        (0.5, 0.5, 1.0)
    """
    attacks = list(attacks) if attacks is not None else [Ensemble()]
    if not attacks:
        raise ValueError("attacks=[]: must be one or more, or None for the ensemble")
    check_diagnosis(diagnosis)
    check_certificate(certificate)
    bounds = sorted(set(thgs)) if thgs is not None else [crossbar.thg]
    if not bounds:
        raise ValueError("thgs=[]: must be one or more, or None for the crossbar's own")
    read = None
    if chip is not None:
        with crossbar.bounded_by(bounds[-1]):
            read = measure(crossbar, loader, chip, chip_holds)
    found: list[AttackResult] = []
    options: dict[str, Any] = {"seed": seed, "progress": progress, "search_dtype": search_dtype}
    for number, attack in enumerate(attacks, 1):
        state = folder / f"{number}-{attack.name}" if folder and len(attacks) > 1 else folder
        start = None
        for thg in bounds:
            with crossbar.bounded_by(thg):
                place = state / f"thg{thg:g}" if state and len(bounds) > 1 else state
                one = attack(crossbar, loader, start=start, folder=place, **options)
                if heldout:
                    halves = attack_one_half(attack, crossbar, loader, **options)
                    one.attacked_half_accuracy, one.heldout_accuracy = halves
            found.append(one)
            start = one.perturbation
    with crossbar.bounded_by(bounds[-1]):
        vertex = None
        if not all(isinstance(attack, MonteCarlo) for attack in attacks):
            vertices = MonteCarlo(instances=RANDOM_VERTICES, sampler="vertex")
            vertex = vertices(crossbar, loader, seed=seed, progress=False).accuracy
        explained = None
        if diagnosis:
            worst = min((one for one in found if one.thg == bounds[-1]), key=lambda one: one.accuracy)
            full = diagnosis == "full"
            explained = diagnose(crossbar, loader, worst.perturbation, full=full, progress=progress)
    proven: list[Certificate] = []
    largest, why_not = None, None if certificate else "it was not asked for"
    if certificate:
        try:
            for thg in bounds:
                spent = sum(one.passes for one in found if one.thg == thg)
                with crossbar.bounded_by(thg):
                    proven.append(_certificate(crossbar, loader, certificate, spent))
            largest = largest_thgs(crossbar, loader) if up_to else None
        except Unsupported as error:
            proven, why_not = [], f"not supported: {error}"
    flags = red_flags(found, vertex, explained) + of_the_network(crossbar)
    if read:
        flags += of_a_chip(read.accuracy, read.failed, found)
    return Evaluation(crossbar, found, flags, explained, read, proven, why_not, largest)


def _of_devices(crossbar: Crossbar) -> dict[str, Any]:
    """What is not as it is without a word, for a record's configuration."""
    stuck = {name: int((~where.isnan()).sum()) for name, where in crossbar.stuck.items()}
    mapping = {} if crossbar.mapping == DeviceMapping() else {"mapping": asdict(crossbar.mapping)}
    return mapping | ({"stuck": stuck} if stuck else {})


def _certificate(crossbar: Crossbar, loader: Loader, method: str, spent: float) -> Certificate:
    """By a method or, where it has no rule, by intervals."""
    if method == "linear" or (method == "auto" and spent >= PASSES_OF_LINEAR):
        try:
            return certify(crossbar, loader, "linear")
        except Unsupported as error:
            return replace(certify(crossbar, loader), note=f"linear bounds are not supported: {error}")
    return certify(crossbar, loader)


def check_diagnosis(diagnosis: str | None) -> None:
    """Short, full, and None are fine.

    Raises:
        ValueError: it is anything else.
    """
    if diagnosis not in (None, "short", "full"):
        raise ValueError(f"diagnosis={diagnosis}: must be short, full, or None")


def check_certificate(certificate: str | None) -> None:
    """Auto, interval, linear, and None are fine.

    Raises:
        ValueError: it is anything else.
    """
    if certificate is not None and certificate not in CERTIFICATES:
        raise ValueError(f"certificate={certificate}: must be {', '.join(CERTIFICATES)}, or None")
