"""The real data sets. These tests run only if WORSTCASE_DATA names a folder that has them."""

import os
from pathlib import Path

import pytest
import torch

from worstcase.data import CIFAR10DataModule, MNISTDataModule, TinyImageNetDataModule

DATA = Path(os.environ.get("WORSTCASE_DATA", ""))


def needs(folder):
    there = "WORSTCASE_DATA" in os.environ and (DATA / folder).is_dir()
    return pytest.mark.skipif(not there, reason=f"WORSTCASE_DATA has no {folder}")


@needs("MNIST")
def test_mnist_has_its_own_numbers_of_images_and_labels():
    data = MNISTDataModule(data_dir=str(DATA))
    data.prepare_data()
    assert [len(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader())] == [54_000, 6_000]
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs("cifar-10-batches-py")
def test_cifar10_has_the_mean_and_deviation_that_it_is_normalised_with():
    data = CIFAR10DataModule(data_dir=str(DATA), augmented=False)
    data.prepare_data()
    images = torch.cat([images for images, _ in data.train_dataloader()])
    assert images.shape == (45_000, 3, 32, 32)
    assert images.mean((0, 2, 3)).abs().max() < 0.01
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.01
    assert torch.cat([labels for _, labels in data.test_dataloader()]).bincount().tolist() == [1000] * 10


@needs("tiny-imagenet-200")
def test_tiny_imagenet_has_its_classes_and_its_limit():
    data = TinyImageNetDataModule(data_dir=str(DATA), limit=2000)
    data.prepare_data()
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (128, 3, 64, 64) and labels.max() < 200
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 1800
