"""Why the worst chip fails: its answers, its weights, and which weights matter."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from worstcase.attacks.passes import on_its_device
from worstcase.batches import Loader
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.evaluation.sensitivity import BUDGET, damage_by_layer, selective_write_verify
from worstcase.task import check, decisions, right_answers

BINS = 20
CLASSES = 20  # the most that are listed
MARGIN = 0.01  # share of the bound: this near to 0 a weight is unmoved, this near to the bound it is at the bound


def diagnose(
    crossbar: Crossbar,
    loader: Loader,
    perturbation: Perturbation,
    *,
    full: bool = False,
    budget: float = BUDGET,
    progress: bool = True,
) -> dict[str, Any]:
    """Describe a chip in plain JSON types for the record. Accuracies and shares are fractions 0..1.

    If an attack on some of the weights finds less than ``accuracy``, the chip was not the worst.

    Args:
        crossbar: the network, at the th_g that the perturbation was found with.
        loader: the reference set, batches (inputs, labels).
        perturbation: of the worst chip.
        full: also attack single layers and sets of the most important weights.
        budget: passes of each of these attacks.
        progress: show the progress of these attacks.

    Returns:
        ``accuracy``, ``clean_accuracy``, ``samples``, ``thg``, ``budget`` (None without `full`), and

        - ``confusion`` (Table III): ``matrix``, counts with a row for each true class and a column for each answer
          of the worst chip (None for more than 20 classes); ``by_class``, for each class the numbers of its
          ``samples``, of ``clean_right`` and ``right`` answers to them, and of all ``answers`` of the worst chip
          that are this class. With more than 20 classes, only the 20 most frequent answers are listed;
        - ``confidence`` (Fig. 4), the largest softmax output, for the ``right`` and the ``wrong`` answers of the
          ``clean`` and the ``worst`` chip: ``counts`` in 20 equal bins of 0..1, the number of ``answers``, and
          their ``mean`` (None if there are no answers);
        - ``perturbation`` (Fig. 5), abs d in units of the bound: ``counts`` in 20 equal bins of 0..1, ``mean``,
          and the shares ``unmoved`` (at most 0.01) and ``at_bound`` (0.99 or more);
        - ``layers`` (Fig. 6): the same for each array, without counts; with `full` also the result of
          `damage_by_layer`;
        - ``selective_write_verify``: with `full`, the result of that function; else None.

    Raises:
        ValueError: the perturbation does not fit this crossbar or is outside its bound, or there are no samples.

    Cost: 2 passes. With `full`, about ``budget`` per layer, and 10 (budget + 1) + 2 for selective write-verify.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> swapped = {"weight": torch.tensor([[-0.5, 0.0], [0.5, 0.0]])}
        >>> found = diagnose(crossbar, [(torch.eye(2), torch.tensor([0, 1]))], swapped)
        >>> found["confusion"]["matrix"], found["perturbation"]["at_bound"]
        ([[1, 0], [0, 1]], 0.5)
    """
    box = crossbar.box
    if not box.contains(perturbation):
        raise ValueError(f"the perturbation does not fit this crossbar, or is not within th_g = {crossbar.thg}")
    clean = _answers(crossbar, loader, box.zero())
    worst = _answers(crossbar, loader, perturbation)
    relative = {name: d.abs() for name, d in box.relative(perturbation).items()}
    layers = [{"array": name, **_moved(r)} for name, r in relative.items()]
    selective = None
    if full:
        damage = damage_by_layer(crossbar, loader, perturbation, budget=budget, progress=progress)
        layers = [layer | damage[layer["array"]] for layer in layers]
        selective = selective_write_verify(crossbar, loader, perturbation, budget=budget, progress=progress)
    return {
        "thg": crossbar.thg,
        "budget": budget if full else None,
        "samples": len(worst.labels),
        "clean_accuracy": clean.accuracy,
        "accuracy": worst.accuracy,
        "confusion": _confusion(clean, worst),
        "confidence": {"clean": _confidence(clean), "worst": _confidence(worst)},
        "perturbation": {
            "counts": [sum(bins) for bins in zip(*(_counts(r) for r in relative.values()), strict=True)],
            **_moved(torch.cat([r.flatten() for r in relative.values()])),
        },
        "layers": layers,
        "selective_write_verify": selective,
    }


class _Answers(NamedTuple):
    """For each decision: its class, the answer, whether it is right, and the largest softmax output."""

    labels: Tensor
    answers: Tensor
    right: Tensor
    confidence: Tensor
    classes: int

    @property
    def accuracy(self) -> float:
        return _share(self.right)


@torch.no_grad()
def _answers(crossbar: Crossbar, loader: Loader, perturbation: Perturbation) -> _Answers:
    batches = []
    with evaluating(crossbar):
        for inputs, labels in on_its_device(crossbar, loader):
            outputs = crossbar(inputs, perturbation)
            check(outputs, labels)
            logits, answers = decisions(outputs, labels)
            confidence = logits.float().softmax(1).amax(1).nan_to_num(0.0)
            right = right_answers(logits, answers)
            batches.append((answers.cpu(), logits.argmax(1).cpu(), right.cpu(), confidence.cpu()))
    if not batches:
        raise ValueError("the reference set has no samples")
    labels, answers, right, confidence = map(torch.cat, zip(*batches, strict=True))
    return _Answers(labels, answers, right, confidence, logits.shape[1])


def _confusion(clean: _Answers, worst: _Answers) -> dict[str, Any]:
    classes = worst.classes
    answered = worst.answers.bincount(minlength=classes)
    samples = worst.labels.bincount(minlength=classes)
    clean_right, right = (a.labels[a.right].bincount(minlength=classes) for a in (clean, worst))
    matrix = None
    listed = answered.argsort(descending=True, stable=True)[:CLASSES].tolist()
    if classes <= CLASSES:
        counts = (worst.labels * classes + worst.answers).bincount(minlength=classes**2)
        matrix = counts.view(classes, classes).tolist()
        listed.sort()
    return {
        "matrix": matrix,
        "by_class": [
            {
                "class": label,
                "samples": int(samples[label]),
                "clean_right": int(clean_right[label]),
                "right": int(right[label]),
                "answers": int(answered[label]),
            }
            for label in listed
        ],
    }


def _confidence(answers: _Answers) -> dict[str, Any]:
    return {
        key: {
            "answers": len(confidence),
            "mean": confidence.mean().item() if len(confidence) else None,
            "counts": _counts(confidence),
        }
        for key, confidence in (
            ("right", answers.confidence[answers.right]),
            ("wrong", answers.confidence[~answers.right]),
        )
    }


def _moved(relative: Tensor) -> dict[str, Any]:
    return {
        "weights": relative.numel(),
        "mean": relative.mean().item(),
        "unmoved": _share(relative <= MARGIN),
        "at_bound": _share(relative >= 1 - MARGIN),
    }


def _counts(values: Tensor) -> list[int]:
    """The number of values in each of the equal bins of 0..1; the last bin includes 1."""
    return (values.flatten() * BINS).int().clamp_max(BINS - 1).bincount(minlength=BINS).tolist()


def _share(hits: Tensor) -> float:
    return int(hits.count_nonzero()) / hits.numel()
