"""LeNet for 28x28 grey images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from worstcase.checks import choice


class LeNet(nn.Module):
    """LeNet with ReLU and max pooling.

    Args:
        num_classes: number of outputs.
        variant: ``authors``, the layout of the paper's authors (3x3 convolutions of 6 and 16 channels, then
            784-120-84), or ``lecun98`` (5x5 convolutions, then 400-120-84, as in LeCun et al., 1998).

    Example:
        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, variant: str = "authors") -> None:
        super().__init__()
        choice("variant", variant, ("authors", "lecun98"))
        kernel, first_padding, second_padding, side = (3, 1, 1, 7) if variant == "authors" else (5, 2, 0, 5)
        self.conv1 = nn.Conv2d(1, 6, kernel, padding=first_padding)
        self.conv2 = nn.Conv2d(6, 16, kernel, padding=second_padding)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))
