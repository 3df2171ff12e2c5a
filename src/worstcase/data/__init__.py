"""Data sets as LightningDataModules."""

from worstcase.data.arrays import ArraysDataModule
from worstcase.data.base import ImageDataModule, InMemoryDataModule, SampleDataModule
from worstcase.data.cifar10 import CIFAR10DataModule
from worstcase.data.imagefolder import ImageFolderDataModule
from worstcase.data.mnist import MNIST5k, MNISTDataModule
from worstcase.data.own import OwnDataModule
from worstcase.data.time_series import TimeSeriesDataModule
from worstcase.data.tiny_imagenet import TinyImageNetDataModule

__all__ = [
    "ArraysDataModule",
    "CIFAR10DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "InMemoryDataModule",
    "MNIST5k",
    "MNISTDataModule",
    "OwnDataModule",
    "SampleDataModule",
    "TimeSeriesDataModule",
    "TinyImageNetDataModule",
]
