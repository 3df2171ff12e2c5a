"""Batches, whatever their inputs are: tensors, tuples or dicts of them, with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = Any
"""The inputs of a batch as the network takes them: a tensor, a tuple of arguments, or a dict of them by name."""
Loader = Iterable[Any]
"""Batches (inputs, labels), or dicts with labels, iterable again and again."""


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
