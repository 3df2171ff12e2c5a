"""One attack's run: it scores perturbations, counts passes, and keeps the worst."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worstcase.attacks.gradient import gradient
from worstcase.attacks.half import Half
from worstcase.attacks.passes import check_loader, on_its_device, refuse_one_hot_labels
from worstcase.attacks.reference_set import ReferenceSet
from worstcase.attacks.sorted_data import Pairs, by_class
from worstcase.batches import Inputs, Loader
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.objectives import Objective
from worstcase.task import check, decisions, right_answers


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
        check_loader(loader)
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
        self._of_all, self._of_steps = Pairs(), Pairs()
        self.samples = self.decisions = self.mini_batches = self.classes = 0  # of the reference set
        self._reference = ReferenceSet(loader)
        self._unmoved = set(self.box.movable)  # arrays whose gradient was always zero
        self.worst = self.box.zero()
        self.worst_accuracy = 2.0  # above any accuracy
        self.one_answer = 0.0  # share of the decisions of the chip scored last that get its most frequent answer
        self._lowest_shown = 1.0
        self.history: list[dict[str, Any]] = []
        self.members: list[dict[str, Any]] = []
        self.distribution: dict[str, Any] | None = None
        self.score(self.worst)

    @property
    def data_digest(self) -> str:
        """Of the reference set's samples."""
        return self._reference.digest

    def batches(self) -> Iterator[tuple[Inputs, Tensor]]:
        return on_its_device(self.crossbar, self._reference)

    def batches_beside_passes(self) -> Iterator[tuple[Inputs, Tensor]]:
        """The same while other passes are made."""
        return on_its_device(self.crossbar, _of_its_own_workers(self.loader))

    def gradient(self, objective: Objective, perturbation: Perturbation, batches: Loader) -> dict[str, Tensor]:
        """The gradient in the perturbation of the objective's sum over some mini-batches."""
        lower: AbstractContextManager = nullcontext()
        if self._search_dtype is not None:
            lower = torch.autocast(self.device.type, getattr(torch, self._search_dtype))
        with lower:
            return self._gradient(objective, self._as_kept(perturbation), batches, self._of_steps)[0]

    def full_gradient(self, objective: Objective, perturbation: Perturbation) -> dict[str, Tensor]:
        """The same over the whole reference set; its forward pass scores the perturbation too."""
        perturbation = self._as_kept(perturbation)
        total, correct = self._gradient(objective, perturbation, self.batches())
        self._keep(perturbation, correct / self.decisions, {})
        return total

    @torch.no_grad()
    def score(self, perturbation: Perturbation, **context: Any) -> float:
        """The accuracy of a perturbation over the whole reference set; kept if it is the lowest so far.

        Raises:
            RuntimeError: the perturbation is not feasible; that is a defect of the attack.
            ValueError: the reference set is empty, its labels are not those of the network's classes, or the
                network gives NaN as programmed.
        """
        correct: int | Tensor = 0
        given: int | Tensor = 0  # how often each answer was
        wanted: int | Tensor = 0  # how often each label was
        one_hot: list[int] = []
        no_answers: int | Tensor = 0
        perturbation = self._as_kept(perturbation)
        samples = made = mini_batches = 0
        for inputs, labels in self.batches():
            outputs = self.crossbar(inputs, perturbation)
            logits, answers = decisions(outputs, labels)
            if not self.history:  # once for all passes, since looking at the labels waits for the device
                one_hot.append(check(outputs, labels, sigmoid=self.crossbar.ends_in_a_sigmoid))
                no_answers += logits.isnan().any(1).sum()
            correct += right_answers(logits, answers).sum()
            given += by_class(logits, logits.argmax(1))
            wanted += by_class(logits, answers)
            samples += len(labels)
            made += len(answers)
            mini_batches += 1
        if not made:
            raise ValueError("the reference set has no samples")
        if no_answers:
            raise ValueError(
                f"the network as programmed gives NaN for {int(no_answers)} of {made} answers: look for NaN in "
                "the inputs, biases and running statistics, or for an overflow"
            )
        if one_hot:
            refuse_one_hot_labels(self.crossbar, self.loader, one_hot)
        assert isinstance(given, Tensor) and isinstance(wanted, Tensor)
        self.samples, self.decisions, self.mini_batches, self.classes = (
            samples,
            made,
            mini_batches,
            logits.shape[1],
        )
        self.one_answer = int(given.max()) / made
        if not self.history:
            self._of_all.add(int(wanted.square().sum()), made)
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
        self, objective: Objective, perturbation: Perturbation, batches: Loader, pairs: Pairs | None = None
    ) -> tuple[dict[str, Tensor], int]:
        """Summed over the batches, and the number of right answers; counts the pairs of labels in each batch."""
        total: dict[str, Tensor] = {}
        correct = 0
        for inputs, labels in batches:
            found, logits, answers = gradient(self.crossbar, objective, perturbation, inputs, labels)
            self._forwards += len(labels)
            self._backwards += len(labels)
            looked_at = [right_answers(logits, answers).sum()]
            looked_at += [look for g in found.values() for look in (g.isfinite().all(), g.any())]
            if pairs is not None and labels.ndim == 1:
                looked_at.append(by_class(logits, answers).square().sum())
            looks = torch.stack([look.to(logits.device, torch.long) for look in looked_at]).cpu().tolist()
            if pairs is not None and labels.ndim == 1:
                pairs.add(looks.pop(), len(answers))
            right, *looks = looks
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

    def _as_kept(self, perturbation: Perturbation) -> dict[str, Tensor]:
        """It where the weights are, and in their dtype: what is scored is what is reported."""
        return {name: d.to(self.worst[name]) for name, d in perturbation.items()}

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
    def sorted_steps(self) -> bool:
        """Whether the labels of mini-batches are nearer to one class each than to those of the whole set."""
        return self._of_steps.alike > (1 + self._of_all.alike) / 2

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


def _of_its_own_workers(loader: Any) -> Loader:
    """A copy where workers persist: they would serve only one of two passes at a time."""
    if isinstance(loader, Half):
        return Half(_of_its_own_workers(loader.loader), loader.which)
    if getattr(loader, "persistent_workers", False):
        loader = copy.copy(loader)
        loader._iterator = None
    return loader
