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

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Any
"""The inputs of a batch as the network takes them: a tensor, a tuple of arguments, or a dict of them by name."""
Loader = Iterable[Any]
"""Batches (inputs, labels), or dicts with labels, iterable again and again."""
IGNORED = (-100, 255)  # PyTorch's, and the void of segmentation masks
SHAPES_ONLY = ("Squeeze", "Unsqueeze", "View", "UnsafeView", "Reshape", "Transpose", "Permute", "Select", "ToCopy")
ONE_HOT = 8  # samples (pixels, tokens), that labels of one 1 each are no chance
EXPECTED = (
    "expected outputs (N, C) with labels (N,), (N, C, ...) or (N, ..., C) with (N, ...), or one logit for each "
    "label of 0 or 1"
)


def inputs_and_labels(batch: Any) -> tuple[Inputs, Tensor]:
    """A batch in two: (inputs, labels), or a dict whose ``labels`` are its labels.

    Raises:
        ValueError: it is neither, its labels are not a tensor with a label for each input, or other inputs of its
            samples are in a list, which cannot be cut.

    Example:
        >>> inputs_and_labels({"input_ids": torch.tensor([[7, 8]]), "labels": torch.tensor([1])})
        ({'input_ids': tensor([[7, 8]])}, tensor([1]))
    """
    needed = "a batch must be (inputs, labels), tensors with a label for each input, or a dict with labels"
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise ValueError(f"{needed}, not a dict of {', '.join(map(str, batch))}")
        inputs: Any = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch["labels"]
    else:
        try:
            inputs, labels = batch
        except (TypeError, ValueError):
            raise ValueError(f"{needed}, not a {type(batch).__name__} of something else") from None
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
        elif isinstance(inputs, list) and all(isinstance(part, Tensor) for part in inputs):
            inputs = tuple(inputs)  # a DataLoader makes lists of tuples
    if not isinstance(inputs, Tensor | tuple | dict) or not tensors_in(inputs):
        raise ValueError(f"{needed}, but its inputs are a {type(inputs).__name__}; make them a tensor")
    if not isinstance(labels, Tensor):
        raise ValueError(f"{needed}, but its labels are a {type(labels).__name__}; make them a tensor")
    samples = samples_in(inputs)
    parts = inputs if isinstance(inputs, dict) else dict(enumerate(inputs)) if isinstance(inputs, tuple) else {}
    for key, part in parts.items():
        if isinstance(part, list) and len(part) == samples > 1 and not tensors_in(part):
            raise ValueError(f"the batch's {key} is a list with an entry for each sample; make it a tensor")
    if labels.is_complex() or labels.ndim == 0 or len(labels) != samples:
        raise ValueError(
            f"{needed}, but there are {samples} inputs and {labels.dtype} labels of shape {tuple(labels.shape)}"
        )
    return inputs, labels


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
    found: Any = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits", outputs.get("out"))
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise ValueError(
            "the network must give a tensor, a dict or an object with logits, or a tuple whose first is a tensor, "
            f"not a {type(outputs).__name__}"
        )
    return found


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


# ---- batches, whatever their inputs are


def of_each(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The inputs with a function's results in place of the tensors.

    Example:
        >>> of_each(torch.sum, {"x": torch.ones(3), "mask": None})
        {'x': tensor(3.), 'mask': None}
    """
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {key: of_each(function, value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(of_each(function, value) for value in inputs)
    return inputs


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors_in(part)]
    return []


def samples_in(inputs: Inputs) -> int:
    """The number of samples of a batch: the length of its first tensor."""
    return next((len(t) for t in tensors_in(inputs) if t.ndim), 0)


def taken(inputs: Inputs, index: slice | Tensor) -> Inputs:
    """Some of the samples; what has not one entry for each sample stays as it is."""
    if isinstance(inputs, Tensor):
        return inputs[index]
    samples = samples_in(inputs)
    return of_each(lambda t: t[index] if t.ndim and len(t) == samples else t, inputs)


def split(inputs: Inputs, labels: Tensor, pieces: int) -> list[tuple[Inputs, Tensor]]:
    """A batch in so many pieces of about the same size."""
    if isinstance(inputs, Tensor):
        return list(zip(inputs.tensor_split(pieces), labels.tensor_split(pieces), strict=True))
    parts, begin = [], 0
    for part in labels.tensor_split(pieces):
        parts.append((taken(inputs, slice(begin, begin + len(part))), part))
        begin += len(part)
    return parts


def joined(batches: Sequence[tuple[Inputs, Tensor]]) -> tuple[Inputs, Tensor]:
    """Batches that `can_be_joined` as one."""
    labels = torch.cat([part for _, part in batches])
    first, samples = batches[0][0], samples_in(batches[0][0])
    if isinstance(first, Tensor):
        return torch.cat([x for x, _ in batches]), labels
    columns = iter(zip(*(tensors_in(x) for x, _ in batches), strict=True))

    def cat(t: Tensor) -> Tensor:
        column = next(columns)
        return torch.cat(column) if t.ndim and len(t) == samples else t

    return of_each(cat, first), labels


def can_be_joined(one: tuple[Inputs, Tensor], other: tuple[Inputs, Tensor]) -> bool:
    """Whether the samples of two batches have the same shapes, and all else in them is the same."""
    ones, others = ([*tensors_in(inputs), labels] for inputs, labels in (one, other))
    return len(ones) == len(others) and all(
        map(_same_but_samples, ones, others, _by_sample(ones), _by_sample(others))
    )


def _by_sample(tensors: list[Tensor]) -> list[bool]:
    """Which have an entry for each sample, as the labels, the last, have."""
    return [bool(t.ndim) and len(t) == len(tensors[-1]) for t in tensors]


def _same_but_samples(one: Tensor, other: Tensor, of_one: bool, of_other: bool) -> bool:
    return of_one == of_other and (one.shape[1:] == other.shape[1:] if of_one else torch.equal(one, other))
