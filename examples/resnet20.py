"""A custom network, to evaluate weights that others trained: ResNet-20 for CIFAR-10 (He et al., 2016).

The layout is that of https://github.com/akamaster/pytorch_resnet_cifar10, whose
pretrained_models/resnet20-12fca82f.th reaches 91.73 %, with images normalised by ImageNet's mean and standard
deviation:

python -m src.evaluate net=examples.resnet20:resnet20 checkpoint=resnet20-12fca82f.th data_dir=FOLDER \\
    dataset=cifar10 dataset.mean=[0.485,0.456,0.406] dataset.std=[0.229,0.224,0.225] \\
    thg=0.01
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: strided, its channels padded with zeros."""

    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.bn1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = norm(after)
        self.stride, self.padding = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + shortcut)


class ResNet20(nn.Module):
    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = norm(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1, norm) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2, norm), Block(32, 32, 1, norm), Block(32, 32, 1, norm))
        self.layer3 = nn.Sequential(Block(32, 64, 2, norm), Block(64, 64, 1, norm), Block(64, 64, 1, norm))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> ResNet20:
    return ResNet20()


def resnet20_group_norm() -> ResNet20:
    """The same with group norm in place of batch norm: it normalises each image by itself, also on a chip."""
    return ResNet20(partial(nn.GroupNorm, 8))
