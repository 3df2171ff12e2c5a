"""The task: what a network's outputs and its labels come to as decisions, each right or wrong.

What counts right answers, or follows a gradient towards wrong ones, sees decisions only: logits (M, C) and labels
(M,). Shapes decide how they come about:

| outputs | labels | decisions |
|---|---|---|
| (N, C) | (N,) | one a sample |
| (N, C, ...) | (N, ...) | one a pixel |
| (N, ..., C) | (N, ...) | one a token |
| (N,), (N, 1), (N, 1, ...) | (N, ...) or the same, of 0 and 1 | one logit for two classes |
| (N, L), (N, L, ...), (N, ..., L) | the same, of 0 and 1 | L labels a sample, pixel or token, each with a logit |

Labels of -100 are left out where a sample has several decisions, as are labels of 255 beside fewer classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

IGNORED = (-100, 255)  # PyTorch's, and the void of segmentation masks
SHAPES_ONLY = ("Squeeze", "Unsqueeze", "View", "UnsafeView", "Reshape", "Transpose", "Permute", "Select", "ToCopy")
ONE_HOT = 8  # samples (pixels, tokens), that labels of one 1 each are no chance
EXPECTED = (
    "expected outputs (N, C) with labels (N,), (N, C, ...) or (N, ..., C) with (N, ...), or one logit for each "
    "label of 0 or 1"
)


def decisions(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a batch into logits (M, C), differentiable in the outputs, and labels (M,), int64.

    Args:
        outputs: a tensor, an object or a dict with ``logits`` (or ``out``), or a tuple whose first is a tensor.
        labels: of the batch, see the module.

    Raises:
        ValueError: outputs and labels do not belong together; only their shapes are looked at.

    Example:
        >>> decisions(torch.tensor([[2.0], [-3.0]]), torch.tensor([1, 1]))
        (tensor([[ 0.,  2.],
                [ 0., -3.]]), tensor([1, 1]))
        >>> logits, labels = decisions(torch.zeros(2, 5, 8, 8), torch.zeros(2, 8, 8).long())
        >>> logits.shape, labels.shape
        (torch.Size([128, 5]), torch.Size([128]))
    """
    logits = logits_of(outputs)
    shape, of_labels = logits.shape, labels.shape
    if len(shape) == 2 and of_labels == shape[:1] and shape[1] > 1:
        return logits, _whole(labels)
    if _is_binary(shape, of_labels):
        flat = logits.reshape(-1)
        logits, labels = torch.stack([torch.zeros_like(flat), flat], 1), labels.reshape(-1).long()
    else:
        first = len(shape) > 2 and shape[:1] + shape[2:] == of_labels
        last = len(shape) > 2 and shape[:-1] == of_labels
        if first == last:
            why = (
                "the classes may be in the second or in the last place; pad to another length, with labels of -100"
                if first
                else EXPECTED
            )
            raise ValueError(f"outputs {tuple(shape)} with labels {tuple(of_labels)}: {why}")
        logits = (logits.movedim(1, -1) if first else logits).flatten(0, -2)
        labels = _whole(labels).reshape(-1)
    if len(of_labels) == 1:
        return logits, labels
    kept = counts(labels, logits.shape[1])
    return logits[kept], labels[kept]


def check(outputs: Any, labels: Tensor, *, sigmoid: bool = False) -> int:
    """Make sure that a network's outputs and the labels of a batch belong together; waits for the device.

    Args:
        outputs: of a network.
        labels: of the batch.
        sigmoid: whether the network ends in one, see `ends_in_a_sigmoid`.

    Returns:
        How many one-hot labels the batch has, or 0 if some are not: for `refuse_one_hot`.

    Raises:
        ValueError: they do not.
    """
    logits, answers = decisions(outputs, labels)
    shape = logits_of(outputs).shape
    if _is_binary(shape, labels.shape):
        if sigmoid:
            raise ValueError("the network ends in a sigmoid: leave it out, since a logit above 0 is the answer 1")
        flat = labels.reshape(-1) if labels.is_floating_point() else labels.reshape(-1).long()
        other = flat[(flat != 0) & (flat != 1) & ~(torch.isin(flat, flat.new_tensor(IGNORED)) & (labels.ndim > 1))]
        if len(other):
            raise ValueError(
                f"with an output for each label, every label must be 0 or 1, but one is {other[0]}; {EXPECTED}"
            )
        several = labels.shape == shape and labels.ndim > 1 and labels.shape[1] > 1
        several = several and bool(((flat == 0) | (flat == 1)).all())
        for dim in (1, -1) if several else ():
            if bool((labels.sum(dim) == 1).all()):
                return labels.numel() // labels.shape[dim]
        return 0
    classes = logits.shape[1]
    wrong = answers[(answers < 0) | (answers >= classes)]
    if len(wrong):
        raise ValueError(
            f"the network gives {classes} classes, so each label must be 0 to {classes - 1}, but one is {wrong[0]}"
        )
    return 0


def refuse_one_hot(found: Sequence[int]) -> None:
    """Tell one-hot labels from several labels a sample, which have the same shape.

    Args:
        found: what `check` returned for each batch of a pass.

    Raises:
        ValueError: all labels of the pass are one-hot, and there are eight or more.
    """
    if all(found) and sum(found) >= ONE_HOT:
        raise ValueError("the labels are one-hot: give the number of each class, labels.argmax over the classes")


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Which decisions are right, of (M, C) and (M,); one that is no number is wrong."""
    return (logits.argmax(1) == labels) & ~logits.isnan().any(1)


def logits_of(outputs: Any) -> Tensor:
    """What decisions are made from.

    Raises:
        ValueError: there is no such tensor among the outputs.
    """
    found = which_decides(outputs)
    if not isinstance(found, Tensor):
        raise ValueError(
            "the network must give a tensor, a dict or an object with logits, or a tuple whose first is a tensor, "
            f"not a {type(outputs).__name__}"
        )
    return found


def which_decides(outputs: Any) -> Any:
    """Which of a network's outputs decisions are made from, tensors or not."""
    if isinstance(outputs, Mapping):
        return outputs.get("logits", outputs.get("out"))
    if hasattr(outputs, "logits"):
        return outputs.logits
    return outputs[0] if isinstance(outputs, tuple | list) and outputs else outputs


def leading(outputs: Tensor) -> float:
    """The largest absolute value of the two outputs that lead in each sample, by which rounding is judged.

    A class far below them, such as one that is filled with -1e9, has no say. The classes are in the second or in
    the last place; the one with the smaller result counts.

    Example:
        >>> leading(torch.tensor([[2.0, -1e9, 1.0], [-4.0, -1e9, -3.0]]))
        4.0
    """
    if outputs.ndim < 2:
        outputs = outputs.reshape(-1, 1)
    ordered = outputs.masked_fill(outputs.isnan(), -torch.inf)
    largest = [
        ordered.topk(min(2, ordered.shape[dim]), dim).values.abs().nan_to_num(0, 0, 0).amax() for dim in (1, -1)
    ]
    return float(min(largest))


def _is_binary(shape: Sequence[int], of_labels: Sequence[int]) -> bool:
    """Whether each label has a logit of its own."""
    squeezed = (*shape[:1], *shape[2:]) if len(shape) > 1 and shape[1] == 1 else None
    return tuple(of_labels) in (tuple(shape), squeezed)


def ends_in_a_sigmoid(outputs: Any) -> bool:
    """Whether a network's outputs are probabilities of one class each; by the graph of their gradients."""
    try:
        node = logits_of(outputs).grad_fn
    except ValueError:
        return False
    while node is not None and node.name().startswith(SHAPES_ONLY):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("Sigmoid")


def _whole(labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        raise ValueError(f"labels of {labels.dtype}: give each the number of its class; {EXPECTED}")
    return labels.long()


def counts(labels: Tensor, classes: int) -> Tensor:
    """Which labels of several a sample are to be decided."""
    kept = labels != IGNORED[0]
    return kept & (labels != IGNORED[1]) if classes <= IGNORED[1] else kept
