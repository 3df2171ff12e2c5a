"""ResNet-18 for 32x32 and 64x64 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from worstcase.models.convnet import scaled


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max pooling, as is usual for CIFAR-10 and Tiny ImageNet.

    Args:
        num_classes: number of outputs.
        width: scales the channels 64, 128, 256, 512, above 0.

    Example:
        >>> import torch
        >>> ResNet18(num_classes=200, width=0.125)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 200])
    """

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled((64, 128, 256, 512), width)
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        blocks: list[nn.Module] = []
        before = channels[0]
        for stage, after in enumerate(channels):
            blocks += [_block(before, after, stride=1 if stage == 0 else 2), _block(after, after, stride=1)]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def _block(before: int, after: int, stride: int) -> BasicBlock:
    shortcut = None
    if stride != 1 or before != after:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
    return BasicBlock(before, after, stride, shortcut)
