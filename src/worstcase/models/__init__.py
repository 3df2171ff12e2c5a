"""The paper's networks, except those that torchvision has."""

from worstcase.models.convnet import ConvNet
from worstcase.models.lenet import LeNet
from worstcase.models.resnet18 import ResNet18

__all__ = ["ConvNet", "LeNet", "ResNet18"]
