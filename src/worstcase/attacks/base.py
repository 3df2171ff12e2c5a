"""What every attack shares: the result, and a search that scores perturbations and keeps the worst."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from worstcase.crossbar import Crossbar, Perturbation, evaluating
from worstcase.progress import progress_bar

Loader = Iterable[tuple[Tensor, Tensor]]
Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class WorstCase:
    """The lowest accuracy that one attack found, and the chip that has it.

    Accuracies are fractions 0..1 over the reference set. A pass is one forward, or one backward, over it.
    """

    attack: str
    parameters: dict[str, Any]
    """The attack's settings."""
    thg: float
    clean_accuracy: float
    """Without perturbation."""
    accuracy: float
    """The lowest of all feasible perturbations that the attack scored, the zero one included."""
    final_accuracy: float
    """Of the last iterate, as the paper would report it."""
    perturbation: dict[str, Tensor] = field(repr=False)
    """The perturbation of that accuracy: by array, in weight units."""
    max_relative_perturbation: float
    """Its largest absolute deviation in units of the full scale: at most thg."""
    feasible: bool
    samples: int
    passes: float
    seconds: float
    history: list[dict[str, float]] = field(repr=False)
    """Accuracy against cost: one entry a scored perturbation."""


class Search:
    """One attack's run on one crossbar: hands out batches, counts passes, scores, and keeps the worst."""

    def __init__(self, crossbar: Crossbar, loader: Loader, on_score: Callable[..., None]) -> None:
        self.crossbar, self._loader, self._on_score = crossbar, loader, on_score
        self.bound = crossbar.bound()
        self._device = next(iter(self.bound.values())).device
        self._started = time.perf_counter()
        self._forwards = self._backwards = 0  # samples that went through
        self.samples = 0
        self.worst = crossbar.zero_perturbation()
        self.worst_accuracy = 2.0  # above any accuracy
        self.history: list[dict[str, float]] = []
        self.score(self.worst)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._loader:
            yield images.to(self._device), labels.to(self._device)

    def gradient(
        self, loss: Callable[[Tensor, Perturbation], Tensor], perturbation: Perturbation, images: Tensor
    ) -> dict[str, Tensor]:
        """On one batch, the gradient of a loss of logits and perturbation in the perturbation."""
        leaves = {name: d.detach().requires_grad_() for name, d in perturbation.items()}
        gradients = torch.autograd.grad(
            loss(self.crossbar(images, leaves), leaves), list(leaves.values()), materialize_grads=True
        )
        self._forwards += len(images)
        self._backwards += len(images)
        return dict(zip(leaves, gradients, strict=True))

    def clamp_(self, perturbation: Perturbation) -> None:
        """Project a perturbation onto the box, in place."""
        for name, d in perturbation.items():
            d.clamp_(-self.bound[name], self.bound[name])

    @torch.no_grad()
    def score(self, perturbation: Perturbation, **context: float) -> float:
        """The accuracy of a perturbation over the whole reference set; kept if it is the lowest so far.

        Raises:
            RuntimeError: the perturbation is not feasible; that is a defect of the attack.
            ValueError: the reference set is empty.
        """
        if not self.crossbar.is_feasible(perturbation):
            raise RuntimeError("an attack scored a perturbation outside the bound; it must project first")
        correct = samples = 0
        for images, labels in self.batches():
            correct += (self.crossbar(images, perturbation).argmax(1) == labels).sum()
            samples += len(labels)
        if not samples:
            raise ValueError("the reference set has no samples")
        self.samples = samples
        self._forwards += samples
        accuracy = int(correct) / samples
        if accuracy < self.worst_accuracy:
            self.worst_accuracy = accuracy
            self.worst = {name: d.detach().clone() for name, d in perturbation.items()}
        self.history.append({"passes": self.passes, "accuracy": accuracy, **context})
        self._on_score(self.passes, self.worst_accuracy)
        return accuracy

    @property
    def passes(self) -> float:
        return (self._forwards + self._backwards) / self.samples

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started


class Attack(ABC):
    """Looks for the perturbation within the bound that makes the network's accuracy lowest.

    Calling it with a crossbar and a reference set (batches of inputs and labels, iterable again and again)
    returns a `WorstCase`. The network runs in eval mode and is left bit for bit as it was.
    """

    name: ClassVar[str]

    @abstractmethod
    def search(self, run: Search) -> float | None:
        """Score feasible perturbations; return the accuracy of the paper's result if it is not the last."""

    @abstractmethod
    def expected_passes(self) -> float:
        """The cost in passes, at most; for the progress bar."""

    def __call__(self, crossbar: Crossbar, loader: Loader, *, progress: bool = True) -> WorstCase:
        """Attack a crossbar over a reference set.

        Args:
            crossbar: the network; its th_g bounds the attack.
            loader: batches (inputs, labels); the accuracy over all of them is what the attack minimises.
            progress: a bar on a terminal, a line now and then elsewhere.
        """
        with (
            evaluating(crossbar),
            torch.inference_mode(False),
            torch.enable_grad(),
            progress_bar(self.name, self.expected_passes(), enabled=progress) as on_score,
        ):
            run = Search(crossbar, loader, on_score)
            reported = None
            if any(bool(bound > 0) for bound in run.bound.values()):
                reported = self.search(run)
            return WorstCase(
                attack=self.name,
                parameters=self.parameters(),
                thg=crossbar.thg,
                clean_accuracy=run.history[0]["accuracy"],
                accuracy=run.worst_accuracy,
                final_accuracy=run.history[-1]["accuracy"] if reported is None else reported,
                perturbation=run.worst,
                max_relative_perturbation=crossbar.max_relative_perturbation(run.worst),
                feasible=crossbar.is_feasible(run.worst),
                samples=run.samples,
                passes=run.passes,
                seconds=run.seconds,
                history=run.history,
            )

    def parameters(self) -> dict[str, Any]:
        """The settings, in plain types, for the record."""
        return {
            key: getattr(value, "__name__", value) for key, value in vars(self).items() if not key.startswith("_")
        }
