"""Single passes over some data: the accuracy of a chip, and the gradient at it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from worstcase.attacks.gradient import gradient
from worstcase.attacks.half import Half
from worstcase.batches import Inputs, Loader, inputs_and_labels, of_each
from worstcase.chip.box import Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.chip.substitution import call
from worstcase.objectives import Objective
from worstcase.task import check, decisions, refuse_one_hot, right_answers


def check_loader(loader: Loader) -> None:
    """Make sure that there are batches, again and again.

    Raises:
        ValueError: there are not.
    """
    if isinstance(loader, Iterator):
        raise ValueError("the data can be gone through only once; give a list or a DataLoader")
    if not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise ValueError(f"the data are a {type(loader).__name__}; give a list of batches or a DataLoader")


def on_its_device(crossbar: Crossbar, loader: Loader) -> Iterator[tuple[Inputs, Tensor]]:
    """The batches where the crossbar is: inputs, and labels.

    Raises:
        ValueError: a batch is not inputs and labels, see `worstcase.batches.inputs_and_labels`; or the data can be
            gone through only once.
    """
    check_loader(loader)
    device = next(crossbar.parameters()).device

    def there(t: Tensor) -> Tensor:
        t = t.to(device)
        return t.clone() if t.is_inference() else t  # no gradient can be computed with one made in inference mode

    for batch in loader:
        inputs, labels = inputs_and_labels(batch)
        yield of_each(there, inputs), there(labels)


@torch.no_grad()
def accuracy(crossbar: Crossbar, loader: Loader, perturbation: Perturbation | None = None) -> float:
    """The accuracy 0..1 of a crossbar, as programmed or perturbed, over some data. Cost: one pass.

    Raises:
        ValueError: there are no samples, or labels and outputs do not belong together.
    """
    correct = made = 0
    one_hot: list[int] = []
    with evaluating(crossbar):
        for inputs, labels in on_its_device(crossbar, loader):
            outputs = crossbar(inputs, perturbation)
            one_hot.append(check(outputs, labels, sigmoid=crossbar.ends_in_a_sigmoid))
            logits, answers = decisions(outputs, labels)
            correct += int(right_answers(logits, answers).sum())
            made += len(answers)
    if not made:
        raise ValueError("there are no samples to score")
    refuse_one_hot_labels(crossbar, loader, one_hot)
    return correct / made


@torch.no_grad()
def accuracy_in_plain_pytorch(crossbar: Crossbar, loader: Loader, chip: Mapping[str, Tensor]) -> float | None:
    """The accuracy 0..1 of a copy of the network that has loaded a chip's state dict. Cost: one pass.

    None where the copy is not that chip: outputs are quantised, it cannot be copied, or a pass changes it.
    """
    if crossbar.outputs is not None:
        return None
    correct = made = 0
    with suppress(Exception):  # whatever a foreign network raises
        net = copy.deepcopy(crossbar.net).eval()
        net.load_state_dict(chip)
        for inputs, labels in on_its_device(crossbar, loader):
            logits, answers = decisions(call(net, of_each(Tensor.clone, inputs)), labels)
            correct += int(right_answers(logits, answers).sum())
            made += len(answers)
        if all(torch.equal(t, chip[name]) for name, t in net.state_dict().items()):
            return correct / made
    return None


def refuse_one_hot_labels(crossbar: Crossbar, loader: Loader, found: list[int]) -> None:
    """Of a half, judge the whole: several labels a sample may happen to be one of each sample in a half.

    Args:
        crossbar: the network.
        loader: the data, or a half of them.
        found: see `worstcase.task.refuse_one_hot`.

    Raises:
        ValueError: all labels are one-hot.
    """
    if not isinstance(loader, Half):
        refuse_one_hot(found)
    elif all(found):
        accuracy(crossbar, loader.loader)


@torch.no_grad()
def classes_of(crossbar: Crossbar, loader: Loader) -> int:
    """The number of classes that a network decides among, by the first batch.

    Raises:
        ValueError: there is none, or labels and outputs do not belong together.
    """
    with evaluating(crossbar):
        for inputs, labels in on_its_device(crossbar, loader):
            return decisions(crossbar(inputs), labels)[0].shape[1]
    raise ValueError("the reference set has no samples")


def gradient_over(
    crossbar: Crossbar, loader: Loader, objective: Objective, perturbation: Perturbation
) -> tuple[dict[str, Tensor], int]:
    """The gradient in a perturbation of an objective's sum over some data, and the number of decisions.

    Also where the caller has switched gradients off. Cost: one forward and one backward pass.

    Raises:
        ValueError: there are no samples.
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
    if not made:
        raise ValueError("there are no samples to take a gradient of")
    return total, made
