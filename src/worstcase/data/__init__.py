"""Data sets as LightningDataModules."""

from worstcase.data.base import ImageDataModule, InMemoryDataModule
from worstcase.data.cifar10 import CIFAR10DataModule
from worstcase.data.imagefolder import ImageFolderDataModule
from worstcase.data.mnist import MNIST5k, MNISTDataModule
from worstcase.data.tiny_imagenet import TinyImageNetDataModule

__all__ = [
    "CIFAR10DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryDataModule",
    "MNIST5k",
    "MNISTDataModule",
    "TinyImageNetDataModule",
]
