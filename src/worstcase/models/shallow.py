"""One convolution and one linear layer, for 28x28 grey images."""

from __future__ import annotations

from torch import Tensor, nn

from worstcase.checks import whole


class ShallowConvNet(nn.Module):
    """A wide convolution, max pooling, ReLU, and a linear layer: little that could make a proof loose.

    Args:
        num_classes: number of outputs.
        channels: of the convolution.
        kernel: its size.
        pool: the size of the pooling.

    Raises:
        ValueError: a setting is no whole number, 1 or more.

    Example:
        >>> import torch
        >>> net = ShallowConvNet()
        >>> net(torch.zeros(2, 1, 28, 28)).shape, sum(p.numel() for p in net.parameters())
        (torch.Size([2, 10]), 12362)
    """

    def __init__(self, num_classes: int = 10, channels: int = 32, kernel: int = 5, pool: int = 4) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("kernel", kernel), ("pool", pool)):
            whole(name, value)
        self.conv = nn.Conv2d(1, channels, kernel)
        self.pool = nn.MaxPool2d(pool)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels * ((28 - kernel + 1) // pool) ** 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.pool(self.conv(x))).flatten(1))
