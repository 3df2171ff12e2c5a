"""The paper's networks, except those that torchvision has, and two that are easy to prove."""

from worstcase.models.convnet import ConvNet
from worstcase.models.lenet import LeNet
from worstcase.models.mlp import MLP
from worstcase.models.resnet18 import ResNet18
from worstcase.models.shallow import ShallowConvNet

__all__ = ["MLP", "ConvNet", "LeNet", "ResNet18", "ShallowConvNet"]
