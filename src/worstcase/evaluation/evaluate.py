"""The one function that evaluates a network on its devices, which every door calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from worstcase.attacks import Attack, AttackResult, Ensemble, MonteCarlo
from worstcase.attacks.base import check_parameters
from worstcase.attacks.half import Half
from worstcase.attacks.passes import accuracy_in_plain_pytorch, classes_of
from worstcase.batches import Loader
from worstcase.certificate import Certificate, Unsupported, certify, largest_thgs
from worstcase.checks import check_seed, choice
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.evaluation.diagnosis import diagnose
from worstcase.evaluation.evaluation import Evaluation
from worstcase.evaluation.flags import of_a_chip, of_plain_pytorch, of_the_network, red_flags
from worstcase.evaluation.heldout import attack_one_half
from worstcase.evaluation.measured import measure

RANDOM_VERTICES = 4  # of the box, that attacks are compared with
DIAGNOSES = ("short", "full", None)
CERTIFICATES = ("auto", "interval", "linear", None)
PASSES_OF_LINEAR = 100  # that linear bounds take at most, about


def evaluate(
    crossbar: Crossbar,
    loader: Loader,
    attacks: Attack | Sequence[Attack] | None = None,
    *,
    thgs: float | Sequence[float] | None = None,
    chip: Mapping[str, Any] | None = None,
    chip_holds: str = "deviations",
    heldout: bool = False,
    diagnosis: str | None = "short",
    certificate: str | None = "auto",
    up_to: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
    search_dtype: str | None = None,
) -> Evaluation:
    """Find how low the accuracy of a network can be on a chip that passed write-verify, from both sides.

    The training's test, ``python -m src.evaluate`` and a notebook all ask this function.

    Args:
        crossbar: the network; its th_g bounds the attacks, and is the same afterwards.
        loader: the reference set, batches (inputs, labels), the same in each pass; attacks minimise the accuracy
            over all of them. To get the same numbers again, also the order has to be the same.
        attacks: each is run at each th_g; None: the ensemble.
        thgs: in any order; at each th_g the chip that an attack found at the next smaller one counts too.
            Tolerances that differ by conductance or array are scaled, see `Crossbar.bounded_by`. None: the
            crossbar's own.
        chip: what was read back from a real chip, by array, in weight units, as tensors or NumPy arrays: scored
            too, and held against the box of the largest th_g, wherever it is.
        chip_holds: ``deviations`` from the programmed weights, or ``weights``: see
            `worstcase.evaluation.measured.measure`.
        heldout: also attack one half of the reference set, before the whole, and score the other.
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
        RuntimeError: the result contradicts itself, see `Evaluation`.

    Cost: the attacks' passes, 6 for random vertices, 2 for a short diagnosis, 4 to 6 for each certificate by
    intervals, up to 100 by linear bounds, one for a chip, and one for the worst chip in plain PyTorch.

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
    check_crossbar(crossbar)
    attacks = _each(attacks, Ensemble())
    bounds = sorted(set(_each(thgs, crossbar.thg)))
    choice("diagnosis", diagnosis, DIAGNOSES)
    choice("certificate", certificate, CERTIFICATES)
    check_seed("seed", seed)
    _check(crossbar, loader, attacks, bounds)
    if heldout:
        _check(crossbar, Half(loader, 0), attacks, bounds)
    folder = None if folder is None else Path(folder)
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
                place = state / folder_at(thg, bounds) if state else None
                halves = attack_one_half(attack, crossbar, loader, **options) if heldout else (None, None)
                one = attack(crossbar, loader, start=start, folder=place, **options)
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
            largest = largest_thgs(crossbar, loader) if up_to and crossbar.can_be_scaled else None
        except Unsupported as error:
            proven, why_not = [], f"not supported: {error}"
    flags = red_flags(found, vertex, explained) + of_the_network(crossbar)
    if read:
        flags += of_a_chip(read.accuracy, read.failed, found)
    result = Evaluation(crossbar, found, flags, explained, read, proven, why_not, largest)
    with suppress(ValueError):  # no state dict holds the chip
        plain = accuracy_in_plain_pytorch(crossbar, loader, result.worst_chip())
        if plain is not None:
            flags += of_plain_pytorch(plain, result.worst, result.worst.decisions)
    return result


def folder_at(thg: float, of: Sequence[float]) -> str:
    """Within a folder of attacks' states, that at one of several th_g; the folder itself, at one alone.

    Example:
        >>> [folder_at(thg, [0.01, 0.0123456789]) for thg in (0.01, 0.0123456789)], folder_at(0.01, [0.01])
        (['thg0.01', 'thg0.0123456789'], '.')
    """
    if len(of) == 1:
        return "."
    return f"thg{thg:g}" if float(f"{thg:g}") == thg else f"thg{float(thg)!r}"


def _each(given: Any, usual: Any) -> list[Any]:
    if given is None:
        return [usual]
    if getattr(given, "ndim", None) == 0:  # a number of NumPy or PyTorch
        given = given.item()
    return [given] if isinstance(given, Attack | int | float) else list(given)


def _check(crossbar: Crossbar, loader: Loader, attacks: Sequence[Attack], bounds: Sequence[float]) -> None:
    """Make sure, before any work, that each attack fits the network's classes and each th_g its devices."""
    if not attacks:
        raise ValueError("attacks=[]: must be one or more, or None for the ensemble")
    if odd := [one for one in attacks if not isinstance(one, Attack)]:
        raise ValueError(f"attacks: give objects, such as attacks.FLWC(), not {odd[0]!r}")
    for attack in attacks:
        check_parameters(attack)
    if not bounds:
        raise ValueError("thgs=[]: must be one or more, or None for the crossbar's own")
    for thg in bounds:
        with crossbar.bounded_by(thg):
            _ = crossbar.box
            for attack in attacks:
                attack.check_fit(crossbar, loader)
    if len(attacks) > 1:
        classes = classes_of(crossbar, loader)
        for attack in attacks:
            attack.check_classes(classes)


def _certificate(crossbar: Crossbar, loader: Loader, method: str, spent: float) -> Certificate:
    """By a method or, where it has no rule, by intervals."""
    if method == "linear" or (method == "auto" and spent >= PASSES_OF_LINEAR):
        try:
            return certify(crossbar, loader, "linear")
        except Unsupported as error:
            return replace(certify(crossbar, loader), note=f"linear bounds are not supported: {error}")
    return certify(crossbar, loader)
