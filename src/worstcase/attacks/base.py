"""The base of all attacks, and their result."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from worstcase.attacks.search import Search
from worstcase.batches import Loader
from worstcase.checks import choice, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.chip.modes import evaluating
from worstcase.found import Found, Parameters
from worstcase.objectives import objective as find_objective
from worstcase.progress import progress_bar

SEARCH_DTYPES = ("bfloat16", None)
TAKEN = ("clean", "ensemble", "flwc", "lwc", "monte_carlo", "pgd")
"""Names of this project's attacks, and of the accuracy as programmed in tables."""


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
    data_digest: str
    """Of the samples, in any order."""
    backward_passes: float
    """Number of backward passes among the passes."""


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

    def check_fit(self, crossbar: Crossbar, loader: Loader) -> None:  # noqa: B027 (most have nothing to check)
        """Make sure that the settings fit a network's devices and the reference set. By default they do.

        Raises:
            ValueError: they do not.
        """

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
            start: a perturbation in the box, on any device, that is scored first, such as the worst of a smaller
                th_g: the result is never above its accuracy. It is rounded to the weights' dtype.
            seed: of what the attack draws.
            folder: where an attack that can be resumed keeps its state.
            progress: a bar on a terminal, a line now and then elsewhere.
            search_dtype: ``bfloat16``, to follow gradients that are computed in it (`torch.autocast`), which is
                quicker where the processor has it; every accuracy is counted in the network's own. None: all in
                its own.

        Raises:
            ValueError: no crossbar; a seed that is no whole number, 0 or more; weights that are not finite; a
                reference set that is empty, changes from pass to pass, or whose labels do not belong to the
                network's outputs; a network that does not repeat its answers, or does not multiply with its
                arrays; a box that is not a part of the crossbar's; a start outside it.
        """
        check_crossbar(crossbar)
        whole("seed", seed, least=0)
        choice("search_dtype", search_dtype, SEARCH_DTYPES)
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
                data_digest=run.data_digest,
                passes=run.passes,
                backward_passes=run.backward_passes,
                seconds=run.seconds,
                history=run.history,
                vanished=run.vanished,
                unmoved=run.unmoved,
                sorted_steps=run.sorted_steps,
                members=run.members,
                distribution=run.distribution,
            )

    def parameters(self) -> dict[str, Any]:
        """The settings, in plain types, for the record."""
        return {
            key: getattr(value, "__name__", value) for key, value in vars(self).items() if not key.startswith("_")
        }


def check_attack(attack: Any) -> None:
    """Make sure that it is one.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(attack, Attack):
        raise ValueError(f"{type(attack).__name__}: is no attack; give an object of worstcase.attacks.Attack")


def check_parameters(attack: Attack) -> None:
    """Make sure that it is an attack, and that a record can hold its name and settings.

    Raises:
        ValueError: it is not, or it cannot.
    """
    check_attack(attack)
    if not re.fullmatch(r"[^/\\$]{1,100}", name := getattr(attack, "name", "")) or not name.isprintable():
        raise ValueError(
            f"{type(attack).__name__}.name={name!r}: must be 1 to 100 printable characters other than /, \\ and $"
        )
    if name in TAKEN and not type(attack).__module__.startswith("worstcase."):
        raise ValueError(f"{type(attack).__name__}.name={name!r}: is another's; give the class a name of its own")
    parameters = attack.parameters()
    try:
        TypeAdapter(Parameters).validate_json(json.dumps(parameters, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        refused = f"{name}={parameters[name]}: {first['msg']}"
    except (TypeError, ValueError) as error:
        refused = str(error)
    else:
        return
    raise ValueError(f"{attack.name} has settings that no record holds, {refused}; parameters() may omit them")
