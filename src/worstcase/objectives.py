"""What a gradient attack minimises instead of the accuracy, which has no gradient (Eq. 6-8 of the paper).

Each takes logits (samples, classes) and labels (samples,) and returns (samples,). A lower value means that the
sample is closer to a wrong answer, or more certainly wrong. O are the logits, Z = softmax(O), t the true class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


def p1(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - cross-entropy. Eq. 7 prints cross-entropy - 1; minimising that would raise the accuracy."""
    return 1 + cross_entropy(logits, labels)


def p2(logits: Tensor, labels: Tensor) -> Tensor:
    """Hinge on the margin, p2 of Eq. 7: max(O_t - max over i != t of O_i, 0).

    Eq. 8 prints it with the sign reversed; minimising that would raise the accuracy.

    Example:
        >>> p2(torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([0, 2]))
        tensor([2., 0.])
    """
    return margin(logits, labels).clamp_min(0)


def p3(logits: Tensor, labels: Tensor) -> Tensor:
    """Softplus of the margin, p3 of Eq. 7: softplus(O_t - max over i != t of O_i) - log 2."""
    return F.softplus(margin(logits, labels)) - torch.log(logits.new_tensor(2.0))


def p4(logits: Tensor, labels: Tensor) -> Tensor:
    """max(Z_t - 0.5, 0). Eq. 7 prints O_t, for which 0.5 means nothing."""
    return (probability(logits, labels) - 0.5).clamp_min(0)


def p5(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(2 - 2 Z_t), the argument at least the dtype's epsilon. Eq. 7 prints log(2 O_t - 2)."""
    others = 1 - probability(logits, labels)
    return -(2 * others.clamp_min(torch.finfo(logits.dtype).eps)).log()


def p6(logits: Tensor, labels: Tensor) -> Tensor:
    """Hinge on the margin of probabilities, p6 of Eq. 7: max(Z_t - max over i != t of Z_i, 0)."""
    return margin(logits.softmax(1), labels).clamp_min(0)


def p7(logits: Tensor, labels: Tensor) -> Tensor:
    """Softplus of the margin of probabilities, p7 of Eq. 7: softplus(Z_t - max over i != t of Z_i) - log 2."""
    return p3(logits.softmax(1), labels)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log Z_t, the negative cross-entropy. It keeps pushing answers that are already wrong."""
    return -F.cross_entropy(logits, labels, reduction="none")


def sigmoid_margin(logits: Tensor, labels: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Sigmoid of margin / temperature: the share of right answers as the temperature goes to 0.

    Unlike a hinge, it ignores samples far from the boundary in favour of those near it.
    """
    return torch.sigmoid(margin(logits, labels) / temperature)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio (Croce and Hein, 2020): the margin over the gap from first to third logit.

    Does not depend on the logits' scale or shift.

    Raises:
        ValueError: there are fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise ValueError("the objective dlr needs three classes or more")
    first, _, third = logits.topk(3, dim=1).values.unbind(1)
    return margin(logits, labels) / (first - third).clamp_min(torch.finfo(logits.dtype).tiny)


def into_class(logits: Tensor, labels: Tensor, target: int = 0) -> Tensor:
    """-log Z_target: pushes all samples into one class. It is 0 for samples whose label is that class.

    Raises:
        ValueError: there is no such class.
    """
    if not 0 <= target < logits.shape[1]:
        raise ValueError(f"objective=into_class:{target}: there are {logits.shape[1]} classes, numbered from 0")
    loss = F.cross_entropy(logits, torch.full_like(labels, target), reduction="none")
    return loss * (labels != target)


def attract(logits: Tensor, labels: Tensor, target: int, own: int | None = None) -> Tensor:
    """Pushes all samples into one class, but that class's own out of it: the pattern of the paper's Table III.

    A chip that puts every sample into one class is right on that class. This objective can leave it.

    Args:
        logits: (samples, classes).
        labels: (samples,).
        target: the class, by -log Z_target.
        own: the class into which its own samples go; None: any other, by the hinge p2.

    Example:
        >>> attract(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0]), target=0)
        tensor([0.1269, 2.0000])
    """
    others = F.cross_entropy(logits, torch.full_like(labels, target), reduction="none")
    if own is None:
        out = p2(logits, labels)
    else:
        out = F.cross_entropy(logits, torch.full_like(labels, own), reduction="none")
    return torch.where(labels == target, out, others)


def mean_distance(margins: Tensor) -> Tensor:
    """The mean absolute margin, above 0 and without a gradient: the unit of temperatures."""
    return margins.detach().abs().mean().clamp_min(torch.finfo(margins.dtype).tiny)


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (p1, p2, p3, p4, p5, p6, p7, cross_entropy, sigmoid_margin, dlr, into_class)
}


def objective(name: str) -> Objective:
    """The objective with a name, such as ``p2``. A parameter follows after a colon.

    Raises:
        ValueError: there is no such objective.

    Example:
        >>> objective("into_class:1")(torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6931])
    """
    key, _, parameter = str(name).partition(":")
    if not parameter and key in OBJECTIVES:
        return OBJECTIVES[key]
    if key == "into_class" and parameter.isdecimal():
        return partial(into_class, target=int(parameter))
    if key == "sigmoid_margin" and (temperature := _number(parameter)) and 0 < temperature < math.inf:
        return partial(sigmoid_margin, temperature=temperature)
    raise ValueError(
        f"objective={name}: must be one of {', '.join(OBJECTIVES)}; sigmoid_margin:TEMPERATURE takes a number "
        "above 0, into_class:CLASS the number of a class"
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """O_t - max over i != t of O_i, (samples,): positive where the answer is right."""
    true = labels.unsqueeze(1)
    others = logits.scatter(1, true, -torch.inf)
    return logits.gather(1, true).squeeze(1) - others.amax(1)


def probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Z_t, (samples,): the probability of the true class, 0..1."""
    return logits.softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
