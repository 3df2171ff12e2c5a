"""The base of all attacks: the result, and a search that scores perturbations and keeps the worst."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from worstcase.attacks.gradient import gradient
from worstcase.attacks.reference_set import ReferenceSet
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.found import Found
from worstcase.objectives import Objective
from worstcase.objectives import objective as find_objective
from worstcase.progress import progress_bar
from worstcase.task import Inputs, Loader, check, decisions, inputs_and_labels, of_each, right_answers


@dataclass(kw_only=True)
class AttackResult(Found):
    """The lowest accuracy that one attack found, and the chip that has it."""

    clean_accuracy: float
    """Without perturbation."""
    perturbation: dict[str, Tensor] = field(repr=False)
    """The perturbation of the lowest accuracy: by array, in weight units."""
    samples: int
    """Number of samples in the reference set."""
    decisions: int
    """Right-or-wrong answers that they come to, of which an accuracy is the share."""
    backward_passes: float
    """Number of backward passes among the passes."""


def on_its_device(crossbar: Crossbar, loader: Loader) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches where the crossbar is: inputs, and labels.

    Raises:
        ValueError: a batch is not inputs and labels, see `worstcase.task.inputs_and_labels`.
    """
    device = next(crossbar.parameters()).device
    for batch in loader:
        inputs, labels = inputs_and_labels(batch)
        yield of_each(lambda t: t.to(device), inputs), labels.to(device)


@torch.no_grad()
def accuracy(crossbar: Crossbar, loader: Loader, perturbation: Perturbation | None = None) -> float:
    """The accuracy 0..1 of a crossbar, as programmed or perturbed, over some data. Cost: one pass.

    Raises:
        ValueError: there are no samples, or labels and outputs do not belong together.
    """
    correct = made = 0
    with evaluating(crossbar):
        for inputs, labels in on_its_device(crossbar, loader):
            outputs = crossbar(inputs, perturbation)
            check(outputs, labels)
            logits, answers = decisions(outputs, labels)
            correct += int(right_answers(logits, answers).sum())
            made += len(answers)
    if not made:
        raise ValueError("there are no samples to score")
    return correct / made


def gradient_over(
    crossbar: Crossbar, loader: Loader, objective: Objective, perturbation: Perturbation
) -> tuple[dict[str, Tensor], int]:
    """The gradient in a perturbation of an objective's sum over some data, and the number of decisions.

    Also where the caller has switched gradients off. Cost: one forward and one backward pass.
    """
    made = 0
    with evaluating(crossbar), torch.inference_mode(False), torch.enable_grad():
        perturbation = {name: d.clone() for name, d in perturbation.items()}  # it may be an inference tensor
        total = {name: torch.zeros_like(d) for name, d in perturbation.items()}
        for inputs, labels in on_its_device(crossbar, loader):
            found, _, answers = gradient(crossbar, objective, perturbation, inputs, labels)
            made += len(answers)
            for name, g in found.items():
                total[name] += g
    return total, made


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
        search_dtype: str | None = None,
    ) -> None:
        if isinstance(loader, Iterator):
            raise ValueError("the reference set can be gone through only once; give a list or a DataLoader")
        self.crossbar, self.loader, self.seed, self.folder = crossbar, loader, seed, folder
        self._expected_passes, self._on_score = expected_passes, on_score
        whole = crossbar.box
        self.box = whole if box is None else box
        self._check_box(whole)
        self.device = next(crossbar.parameters()).device
        self._search_dtype = search_dtype
        self._started = time.perf_counter()
        self._earlier = 0.0  # seconds of work that a resumed attack found done
        self._forwards = self._backwards = 0  # samples that went through
        self._gradients = self._vanished = 0  # mini-batches
        self.samples = self.decisions = self.mini_batches = self.classes = 0  # of the reference set
        self._reference = ReferenceSet(loader)
        self._unmoved = set(self.box.movable)  # arrays whose gradient was always zero
        self.worst = self.box.zero()
        self.worst_accuracy = 2.0  # above any accuracy
        self._lowest_shown = 1.0
        self.history: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.distribution: dict[str, Any] | None = None
        self.score(self.worst)

    def batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        return on_its_device(self.crossbar, self._reference)

    def gradient(self, objective: Objective, perturbation: Perturbation, batches: Loader) -> dict[str, Tensor]:
        """The gradient in the perturbation of the objective's sum over some mini-batches."""
        lower: AbstractContextManager = nullcontext()
        if self._search_dtype is not None:
            lower = torch.autocast(self.device.type, getattr(torch, self._search_dtype))
        with lower:
            return self._gradient(objective, perturbation, batches)[0]

    def full_gradient(self, objective: Objective, perturbation: Perturbation) -> dict[str, Tensor]:
        """The same over the whole reference set; its forward pass scores the perturbation too."""
        total, correct = self._gradient(objective, perturbation, self.batches())
        self._keep(perturbation, correct / self.decisions, {})
        return total

    @torch.no_grad()
    def score(self, perturbation: Perturbation, **context: Any) -> float:
        """The accuracy of a perturbation over the whole reference set; kept if it is the lowest so far.

        Raises:
            RuntimeError: the perturbation is not feasible; that is a defect of the attack.
            ValueError: the reference set is empty, or its labels are not those of the network's classes.
        """
        correct: int | Tensor = 0
        samples = made = mini_batches = 0
        for inputs, labels in self.batches():
            outputs = self.crossbar(inputs, perturbation)
            if not self.history:  # once for all passes, since looking at the labels waits for the device
                check(outputs, labels)
            logits, answers = decisions(outputs, labels)
            correct += right_answers(logits, answers).sum()
            samples += len(labels)
            made += len(answers)
            mini_batches += 1
        if not made:
            raise ValueError("the reference set has no samples")
        self.samples, self.decisions, self.mini_batches, self.classes = (
            samples,
            made,
            mini_batches,
            logits.shape[1],
        )
        self._forwards += samples
        return self._keep(perturbation, int(correct) / made, context)

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
        for inputs, labels in batches:
            found, logits, answers = gradient(self.crossbar, objective, perturbation, inputs, labels)
            self._forwards += len(labels)
            self._backwards += len(labels)
            looked_at = [right_answers(logits, answers).sum()]
            looked_at += [look for g in found.values() for look in (g.isfinite().all(), g.any())]
            right, *looks = torch.stack([look.to(logits.device, torch.long) for look in looked_at]).cpu().tolist()
            finite = all(looks[::2])  # the host waits for the device once
            moved = {name for name, moves in zip(found, looks[1::2], strict=True) if moves}
            if right:
                self._gradients += 1
                self._vanished += not (finite and moved & self.box.movable)
            self._unmoved -= moved
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
        """The number of weights that may be perturbed."""
        return sum(d.numel() for d in self.worst.values())

    @property
    def vanished(self) -> float:
        return self._vanished / self._gradients if self._gradients else 0.0

    @property
    def unmoved(self) -> list[str]:
        """The arrays of which no weight ever had a gradient, if there were gradients at all."""
        return sorted(self._unmoved) if self._backwards else []

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
        """Whether any weight may deviate."""
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
        search_dtype: str | None = None,
    ) -> AttackResult:
        """Attack a crossbar over a reference set.

        Args:
            crossbar: the network.
            loader: batches (inputs, labels), see `worstcase.task`; the accuracy over all of them is what the
                attack minimises.
            box: the part of the crossbar's box to search, see `Box.restricted_to`; None: all of it.
            start: a perturbation in the box that is scored first, such as the worst of a smaller th_g: the result
                is never above its accuracy.
            seed: of what the attack draws.
            folder: where an attack that can be resumed keeps its state.
            progress: a bar on a terminal, a line now and then elsewhere.
            search_dtype: ``bfloat16``, to follow gradients that are computed in it (`torch.autocast`), which is
                quicker where the processor has it; every accuracy is counted in the network's own. None: all in
                its own.

        Raises:
            ValueError: weights that are not finite; a reference set that is empty, changes from pass to pass, or
                whose labels do not belong to the network's outputs; a network that does not repeat its answers, or
                does not multiply with its arrays; a box that is not a part of the crossbar's; a start outside it.
        """
        check_search_dtype(search_dtype)
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
                search_dtype=search_dtype,
            )
            if start is not None:
                run.check_start(start)
                run.score(start, start=True)
            reported = None
            if self.can_move(run):
                reported = self.search(run)
            return AttackResult(
                attack=self.name,
                parameters=self.parameters() | ({"search_dtype": search_dtype} if search_dtype else {}),
                seed=seed,
                thg=crossbar.thg,
                clean_accuracy=run.history[0]["accuracy"],
                accuracy=run.worst_accuracy,
                final_accuracy=run.history[-1]["accuracy"] if reported is None else reported,
                perturbation=run.worst,
                max_relative_perturbation=crossbar.max_relative_perturbation(run.worst),
                feasible=run.box.contains(run.worst),
                samples=run.samples,
                decisions=run.decisions,
                passes=run.passes,
                backward_passes=run.backward_passes,
                seconds=run.seconds,
                history=run.history,
                vanished=run.vanished,
                unmoved=run.unmoved,
                members=run.members,
                distribution=run.distribution,
            )

    def parameters(self) -> dict[str, Any]:
        """The settings, in plain types, for the record."""
        return {
            key: getattr(value, "__name__", value) for key, value in vars(self).items() if not key.startswith("_")
        }


def check_search_dtype(search_dtype: str | None) -> None:
    """Bfloat16 and None are fine.

    Raises:
        ValueError: it is anything else.
    """
    if search_dtype not in (None, "bfloat16"):
        raise ValueError(f"search_dtype={search_dtype}: must be bfloat16, or None for the network's own")
