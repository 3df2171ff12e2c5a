"""A perceptron with hidden layers, for small images or other inputs of fixed size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from worstcase.checks import whole


class MLP(nn.Sequential):
    """Fully connected layers with ReLU between them.

    With one hidden layer, and inputs that are exact, interval bounds are exact for each margin.

    Args:
        num_classes: number of outputs.
        inputs: values of one input, such as 28 x 28 pixels.
        hidden: the sizes of the hidden layers.

    Raises:
        ValueError: a size is no whole number, 1 or more.

    Example:
        >>> import torch
        >>> MLP(hidden=[64, 32])(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, inputs: int = 784, hidden: Sequence[int] = (256,)) -> None:
        sizes = [inputs, *hidden]
        for size in sizes:
            whole("hidden", size)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(sizes[-1], num_classes))
