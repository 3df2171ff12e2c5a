"""PGD on the weights, the paper's baseline in Table I."""

from __future__ import annotations

from worstcase.attacks.flwc import FLWC


class PGD(FLWC):
    """Projected gradient descent as the authors have it: F-LWC's steps, against the cross-entropy.

    One sign step of bound / steps after each pass over the reference set. The paper says only 'modified weight
    PGD'; its authors' code does not clamp, this does.

    Args:
        steps: sign steps; the step size is bound / steps.
        objective: name of what is minimised, see `worstcase.objectives`.

    Cost: 2 passes a step (forward, which also scores, and backward), 1 for the clean accuracy, 1 for the last
    score.
    """

    name = "pgd"

    def __init__(self, *, steps: int = 10, objective: str = "cross_entropy") -> None:
        super().__init__(steps=steps, update="epoch", objective=objective)
