"""F-LWC, the paper's fast worst-case evaluation (Algorithm 1)."""

from __future__ import annotations

from worstcase.attacks.base import Attack
from worstcase.attacks.search import Search
from worstcase.checks import choice, whole
from worstcase.objectives import objective as find_objective


class FLWC(Attack):
    """F-LWC (Algorithm 1): sign steps of equal size from zero until the bound is reached.

    Unlike the paper's, the perturbation is clamped to the box after each step: with an update a batch it
    would leave it as soon as there is more than one batch.

    Args:
        steps: epochs over the reference set, Ep = th_g / eta of line 4; the step size eta is bound / steps. Where
            the ends of the box differ, the bound is the one that is farther from 0.
        update: ``batch``, a step after each mini-batch (as printed), or ``epoch``, one after each pass
            over the reference set (as in the authors' code).
        objective: name of what is minimised, see `worstcase.objectives`.

    Cost: 1 pass for the clean accuracy, and with an update a batch 3 a step (forward, backward, scoring), with one
    an epoch 2 a step and 1 for the last score.

    Example:
        >>> import torch
        >>> from worstcase import Crossbar
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> FLWC(steps=2)(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))]).accuracy
        0.0
    """

    name = "flwc"

    def __init__(self, *, steps: int = 10, update: str = "batch", objective: str = "p2") -> None:
        whole("steps", steps)
        choice("update", update, ("batch", "epoch"))
        self.steps, self.update, self.objective = steps, update, objective
        self._objective = find_objective(objective)

    def expected_passes(self, run: Search) -> float:
        return 1 + 3 * self.steps if self.update == "batch" else 2 + 2 * self.steps

    def search(self, run: Search) -> None:
        perturbation = run.box.zero()  # line 3
        eta = {name: end / self.steps for name, end in run.box.reach.items()}
        for _ in range(self.steps):  # lines 4-5
            if self.update == "batch":
                for batch in run.batches():  # lines 6-10
                    run.box.step_(perturbation, run.gradient(self._objective, perturbation, [batch]), eta)
                run.score(perturbation)
            else:
                run.box.step_(perturbation, run.full_gradient(self._objective, perturbation), eta)
        if self.update == "epoch":
            run.score(perturbation)
