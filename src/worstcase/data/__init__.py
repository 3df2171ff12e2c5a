"""Data sets as LightningDataModules."""

from worstcase.data.base import InMemoryDataModule
from worstcase.data.mnist import MNIST5k, MNISTDataModule

__all__ = ["InMemoryDataModule", "MNIST5k", "MNISTDataModule"]
