"""The paper's networks; torchvision has the others."""

from worstcase.models.convnet import ConvNet
from worstcase.models.lenet import LeNet
from worstcase.models.resnet18 import ResNet18

__all__ = ["ConvNet", "LeNet", "ResNet18"]
