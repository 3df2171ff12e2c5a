"""What every attack shares: the result, and a search that scores perturbations and keeps the worst."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from worstcase.attacks.gradient import gradient
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.evaluation.record import Found
from worstcase.objectives import Objective
from worstcase.objectives import objective as find_objective
from worstcase.progress import progress_bar

Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(kw_only=True)
class AttackResult(Found):
    """The lowest accuracy that one attack found, and the chip that has it."""

    clean_accuracy: float
    """Without perturbation."""
    perturbation: dict[str, Tensor] = field(repr=False)
    """The perturbation of the lowest accuracy: by array, in weight units."""
    samples: int
    """Of the reference set."""
    backward_passes: float
    """Of the passes, those backward."""


def on_its_device(crossbar: Crossbar, loader: Loader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches where the crossbar is, the labels as int64.

    Raises:
        ValueError: a batch is not two tensors, inputs and labels, the latter 1-D integers, one for each input.
    """
    device = next(crossbar.parameters()).device
    for batch in loader:
        images, labels = _inputs_and_labels(batch)
        yield images.to(device), labels.to(device, torch.long)


def _inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    needed = "a batch must be (inputs, labels), two tensors, the labels 1-D integers, one for each input"
    try:
        images, labels = batch
    except (TypeError, ValueError):
        raise ValueError(f"{needed}, not a {type(batch).__name__} of something else") from None
    for name, part in (("inputs", images), ("labels", labels)):
        if not isinstance(part, Tensor):
            raise ValueError(f"{needed}, but its {name} are a {type(part).__name__}; make them a tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{needed}, but its labels are {labels.dtype}; give each the number of its class")
    if labels.shape != (len(images),):
        raise ValueError(f"{needed}, but there are {len(images)} inputs and labels of shape {tuple(labels.shape)}")
    return images, labels


def check_answers(outputs: Any, labels: Tensor) -> None:
    """Make sure that a network's outputs and the labels of a batch belong together; waits for the device.

    Args:
        outputs: (N, classes).
        labels: (N,), 0 to classes - 1.

    Raises:
        ValueError: they do not.
    """
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(labels):
        raise ValueError(f"for {len(labels)} labels the network must give ({len(labels)}, classes), not {shape}")
    classes = outputs.shape[1]
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(
            f"the network gives {classes} classes, so each label must be 0 to {classes - 1}, but one is {wrong[0]}"
        )


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Which answers are right, of (N, classes) and (N,); one that is no number is wrong."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


@torch.no_grad()
def accuracy(crossbar: Crossbar, loader: Loader, perturbation: Perturbation | None = None) -> float:
    """The accuracy 0..1 of a crossbar, as programmed or perturbed, over some data. Cost: one pass.

    Raises:
        ValueError: there are no samples, or labels and outputs do not belong together.
    """
    correct = samples = 0
    with evaluating(crossbar):
        for images, labels in on_its_device(crossbar, loader):
            logits = crossbar(images, perturbation)
            check_answers(logits, labels)
            correct += int(right_answers(logits, labels).sum())
            samples += len(labels)
    if not samples:
        raise ValueError("there are no samples to score")
    return correct / samples


class Search:
    """One attack's run on one crossbar: hands out batches, counts passes, scores, and keeps the worst."""

    def __init__(
        self,
        crossbar: Crossbar,
        loader: Loader,
        *,
        box: Box | None,
        seed: int,
        folder: Path | None,
        expected_passes: Callable[[Search], float],
        on_score: Callable[[float, float, float], None],
    ) -> None:
        if isinstance(loader, Iterator):
            raise ValueError("the reference set can be gone through only once; give a list or a DataLoader")
        self.crossbar, self.loader, self.seed, self.folder = crossbar, loader, seed, folder
        self._expected_passes, self._on_score = expected_passes, on_score
        whole = crossbar.box
        self.box = whole if box is None else box
        self._check_box(whole)
        self.device = next(crossbar.parameters()).device
        self._started = time.perf_counter()
        self._earlier = 0.0  # seconds of work that a resumed attack found done
        self._forwards = self._backwards = 0  # samples that went through
        self._gradients = self._vanished = 0  # mini-batches
        self.samples = self.mini_batches = self.classes = 0  # of the reference set
        self.worst = self.box.zero()
        self.worst_accuracy = 2.0  # above any accuracy
        self._lowest_shown = 1.0
        self.history: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.distribution: dict[str, Any] | None = None
        self.score(self.worst)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        return on_its_device(self.crossbar, self.loader)

    def gradient(self, objective: Objective, perturbation: Perturbation, batches: Loader) -> dict[str, Tensor]:
        """The gradient in the perturbation of the objective's sum over some mini-batches."""
        return self._gradient(objective, perturbation, batches)[0]

    def full_gradient(self, objective: Objective, perturbation: Perturbation) -> dict[str, Tensor]:
        """The same over the whole reference set; its forward pass scores the perturbation too."""
        total, correct = self._gradient(objective, perturbation, self.batches())
        self._keep(perturbation, correct / self.samples, {})
        return total

    @torch.no_grad()
    def score(self, perturbation: Perturbation, **context: Any) -> float:
        """The accuracy of a perturbation over the whole reference set; kept if it is the lowest so far.

        Raises:
            RuntimeError: the perturbation is not feasible; that is a defect of the attack.
            ValueError: the reference set is empty, or its labels are not those of the network's classes.
        """
        correct: int | Tensor = 0
        samples = mini_batches = 0
        for images, labels in self.batches():
            logits = self.crossbar(images, perturbation)
            if not self.history:  # once for all passes, since looking at the labels waits for the device
                check_answers(logits, labels)
            correct += right_answers(logits, labels).sum()
            samples += len(labels)
            mini_batches += 1
        if not samples:
            raise ValueError("the reference set has no samples")
        self.samples, self.mini_batches, self.classes = samples, mini_batches, logits.shape[1]
        self._forwards += samples
        return self._keep(perturbation, int(correct) / samples, context)

    def count(self, forwards: int, *, lowest: float = 1.0, earlier: float = 0.0) -> None:
        """Add forward passes of so many samples, of an attack that makes its own.

        Args:
            forwards: samples that went through.
            lowest: accuracy that they gave, to be shown.
            earlier: seconds that they took, where an earlier process made them.
        """
        self._forwards += forwards
        self._earlier += earlier
        self._show(lowest)

    def check_start(self, start: Perturbation) -> None:
        """Make sure that a user's perturbation is one of this crossbar and in the box.

        Raises:
            ValueError: it is not.
        """
        if unknown := sorted(start.keys() - self.worst.keys()):
            raise ValueError(f"start has {unknown[0]}, but the arrays are {', '.join(self.worst)}")
        for name, d in self.worst.items():
            if name not in start or start[name].shape != d.shape:
                raise ValueError(f"start needs a deviation of {name} of its shape {tuple(d.shape)}")
        if not self.box.contains(start):
            raise ValueError(f"start is not in the box at th_g = {self.crossbar.thg}; use box.project(start)")

    def _check_box(self, whole: Box) -> None:
        broken = [
            name
            for name, weight in self.crossbar.programmed().items()
            if not bool(weight.isfinite().all() & whole.high[name].isfinite().all())
        ]
        if broken:
            raise ValueError(
                f"{', '.join(broken)}: weights or their bound are not finite; check the network or its checkpoint"
            )
        if not self.box.is_part_of(whole):
            raise ValueError(
                f"box is not a part of the crossbar's at th_g = {self.crossbar.thg}; use its restricted_to"
            )

    def _gradient(
        self, objective: Objective, perturbation: Perturbation, batches: Loader
    ) -> tuple[dict[str, Tensor], int]:
        """Summed over the batches, and the number of right answers."""
        total: dict[str, Tensor] = {}
        correct = 0
        for images, labels in batches:
            found, logits = gradient(self.crossbar, objective, perturbation, images, labels)
            self._forwards += len(images)
            self._backwards += len(images)
            right = int(right_answers(logits, labels).sum())
            finite = all(bool(g.isfinite().all()) for g in found.values())
            if right:
                self._gradients += 1
                self._vanished += not (finite and any(bool(found[name].any()) for name in self.box.movable))
            for name, g in found.items():
                if not finite:
                    g = g.nan_to_num(0, 0, 0)
                total[name] = total[name].add_(g) if name in total else g
            correct += right
        return total, correct

    def _keep(self, perturbation: Perturbation, accuracy: float, context: dict[str, Any]) -> float:
        if not self.box.contains(perturbation):
            if not all(bool(d.isfinite().all()) for d in perturbation.values()):
                raise ValueError(
                    "a deviation is not finite any more: the attack's steps are too large; lower lr or c_range"
                )
            raise RuntimeError("an attack scored a perturbation outside the bound; it must project first")
        if accuracy <= self.worst_accuracy:  # of equal ones the later, which fits the objective better
            self.worst_accuracy = accuracy
            for name, d in perturbation.items():
                self.worst[name].copy_(d.detach())
        self.history.append({"passes": self.passes, "accuracy": accuracy, **context})
        self._show(accuracy)
        return accuracy

    def _show(self, accuracy: float) -> None:
        self._lowest_shown = min(self._lowest_shown, accuracy)
        self._on_score(self.passes, self._expected_passes(self), self._lowest_shown)

    @property
    def passes(self) -> float:
        return (self._forwards + self._backwards) / self.samples

    @property
    def backward_passes(self) -> float:
        return self._backwards / self.samples

    @property
    def weights(self) -> int:
        """How many may be perturbed."""
        return sum(d.numel() for d in self.worst.values())

    @property
    def vanished(self) -> float:
        return self._vanished / self._gradients if self._gradients else 0.0

    @property
    def seconds(self) -> float:
        return self._earlier + time.perf_counter() - self._started


class Attack(ABC):
    """Looks for the perturbation within the bound that makes the network's accuracy lowest.

    Calling it with a crossbar and a reference set (batches of inputs and labels, iterable again and again)
    returns a `AttackResult`. The network runs in eval mode and is left bit for bit as it was.
    """

    name: ClassVar[str]

    @abstractmethod
    def search(self, run: Search) -> float | None:
        """Score feasible perturbations; return the accuracy of the paper's result if it is not the last."""

    @abstractmethod
    def expected_passes(self, run: Search) -> float:
        """The cost in passes over a run's reference set, at most."""

    def check_classes(self, classes: int) -> None:
        """Make sure that the objective, if there is one to choose, is for so many classes.

        Raises:
            ValueError: it is not.
        """
        if name := self.parameters().get("objective"):
            find_objective(name)(torch.zeros(1, classes), torch.zeros(1, dtype=torch.long))

    def can_move(self, run: Search) -> bool:
        """Whether there is anything to search: a weight that may deviate."""
        return bool(run.box.movable)

    def __call__(
        self,
        crossbar: Crossbar,
        loader: Loader,
        *,
        box: Box | None = None,
        start: Perturbation | None = None,
        seed: int = 0,
        folder: Path | None = None,
        progress: bool = True,
    ) -> AttackResult:
        """Attack a crossbar over a reference set.

        Args:
            crossbar: the network.
            loader: batches (inputs, labels); the accuracy over all of them is what the attack minimises.
            box: the part of the crossbar's box to search, see `Box.restricted_to`; None: all of it.
            start: a perturbation in the box that is scored first, such as the worst of a smaller th_g: the result
                is never above its accuracy.
            seed: of what the attack draws.
            folder: where an attack that can be resumed keeps its state.
            progress: a bar on a terminal, a line now and then elsewhere.

        Raises:
            ValueError: weights that are not finite, a reference set that is empty or whose labels do not belong to
                the network's outputs, a box that is not a part of the crossbar's, or a start outside it.
        """
        with (
            evaluating(crossbar),
            torch.inference_mode(False),
            torch.enable_grad(),
            progress_bar(self.name, enabled=progress) as on_score,
        ):
            run = Search(
                crossbar,
                loader,
                box=box,
                seed=seed,
                folder=folder,
                expected_passes=self.expected_passes,
                on_score=on_score,
            )
            if start is not None:
                run.check_start(start)
                run.score(start, start=True)
            reported = None
            if self.can_move(run):
                reported = self.search(run)
            return AttackResult(
                attack=self.name,
                parameters=self.parameters(),
                seed=seed,
                thg=crossbar.thg,
                clean_accuracy=run.history[0]["accuracy"],
                accuracy=run.worst_accuracy,
                final_accuracy=run.history[-1]["accuracy"] if reported is None else reported,
                perturbation=run.worst,
                max_relative_perturbation=crossbar.max_relative_perturbation(run.worst),
                feasible=run.box.contains(run.worst),
                samples=run.samples,
                passes=run.passes,
                backward_passes=run.backward_passes,
                seconds=run.seconds,
                history=run.history,
                vanished=run.vanished,
                members=run.members,
                distribution=run.distribution,
            )

    def parameters(self) -> dict[str, Any]:
        """The settings, in plain types, for the record."""
        return {
            key: getattr(value, "__name__", value) for key, value in vars(self).items() if not key.startswith("_")
        }
