"""What all data sets share: splits and subsets."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from worstcase.batches import inputs_and_labels, tensors_in
from worstcase.checks import check_seed, number, whole
from worstcase.data.drawn import BatchesOf, TrainingBatches, draw

Split = tuple[Tensor, Tensor]

KEPT_BYTES = 2**31  # a test split of files up to this size stays in memory, and a split in memory on the GPU


class ImageDataModule(L.LightningDataModule):
    """Training, validation and test split of images, or of samples of another kind.

    The seed draws the validation split from the training data. The test split does not depend on it.

    Args:
        batch_size: images in a batch, 1 or more; the last one of an epoch may be smaller, or in training larger
            by one.
        val_fraction: share of the training data that is held out for validation, above 0 and below 1.
        num_classes: must equal the data set's own number; None takes that number.
        limit: use at most this many training images, drawn by seed, and this many test images, the same for
            every seed; None uses all.
        seed: draws the validation split, the training subset and the order of each epoch.
    """

    num_classes: int

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        batch_size: int = 128,
        val_fraction: float = 0.1,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = check_classes(num_classes, getattr(self, "num_classes", None), type(self).__name__)
        whole("batch_size", batch_size)
        number("val_fraction", val_fraction, above=0, below=1)
        if limit is not None:
            whole("limit", limit, least=2, also="or null for all")
        check_seed("seed", seed)
        self.batch_size, self.val_fraction, self.limit, self.seed = batch_size, val_fraction, limit, seed

    def cut(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw the indices of the training and the validation images from `size` images, by seed."""
        order = draw(size, self.seed)[: self.limit]
        held_out = max(1, round(self.val_fraction * len(order)))
        return order[held_out:], order[:held_out]

    def test_subset(self, size: int) -> Tensor:
        """Indices of the test images: all `size` in order, or `limit` of them, the same for every seed."""
        if self.limit is None or self.limit >= size:
            return torch.arange(size)
        return draw(size, seed=0)[: self.limit]


class InMemoryDataModule(ImageDataModule):
    """Images in memory, as tensors: for small images, slicing them is faster than worker processes.

    Up to 2 GiB of a split lie on `device`, so that a GPU augments and slices its images itself.

    Args:
        options: see `ImageDataModule`.
    """

    device: torch.device | str | None = None
    """Where batches are made; None: where the trainer computes, or on the CPU."""

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Training and test data: uint8 images (N, C, H, W) and int64 labels (N,)."""

    def augment(self, images: Tensor) -> Tensor:
        """Augment a training batch of uint8 images at random; here it stays as it is."""
        return images

    def prepare(self, images: Tensor) -> Tensor:
        """Convert uint8 images to the network's input: scaled to [0, 1]; some data sets also normalise."""
        return images.float().div_(255)

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "_train"):
            return
        (images, labels), (test_images, test_labels) = self.load()
        name = type(self).__name__
        for part, x, y in (("training", images, labels), ("test", test_images, test_labels)):
            if x.dtype != torch.uint8 or x.shape[1:] != images.shape[1:] or y.dtype != torch.long:
                raise ValueError(
                    f"the {part} data of {name} are {x.dtype} {tuple(x.shape)} with {y.dtype} labels, but must be "
                    f"uint8 images of {tuple(images.shape[1:])} with int64 labels; replace the data files"
                )
            check_labels(y, len(x), self.num_classes, f"the {part} data of {name}")
        train, val = self.cut(len(images))
        test = self.test_subset(len(test_images))
        self._train = TrainingBatches(images[train], labels[train], self)
        self._val = TensorDataset(self.prepare(images[val]), labels[val])
        self._test = TensorDataset(self.prepare(test_images[test]), test_labels[test])

    def train_dataloader(self) -> DataLoader:
        self.setup()
        self._train.images, self._train.labels = self._placed(self._train.images, self._train.labels)
        return DataLoader(self._train, sampler=self._train.shuffled(self.batch_size), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        self.setup()
        return self._in_order(self._val)

    def test_dataloader(self) -> DataLoader:
        self.setup()
        return self._in_order(self._test)

    def _in_order(self, data: TensorDataset) -> DataLoader:
        data.tensors = self._placed(*data.tensors)
        return DataLoader(data, sampler=torch.arange(len(data)).split(self.batch_size), batch_size=None)

    def _placed(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors on `device`, if they are not too large for it."""
        device = self.device
        if device is None:
            device = self.trainer.strategy.root_device if self.trainer else "cpu"
        small = sum(t.nbytes for t in tensors) <= KEPT_BYTES
        return tuple(t.to(device) for t in tensors) if small else tensors


class SampleDataModule(ImageDataModule):
    """Data sets of samples of any kind: tensors, or whatever `torch.utils.data` collates to batches.

    Up to 2 GiB of test data stay in memory, since an attack reads them many times.

    Args:
        num_workers: processes that read samples.
        options: see `ImageDataModule`; num_classes must be given.
    """

    def __init__(self, *, num_workers: int = 0, **options: Any) -> None:
        super().__init__(**options)
        whole("num_workers", num_workers, least=0)
        self.num_workers = num_workers

    @abstractmethod
    def load(self) -> tuple[Any, Any, Any]:
        """Training, validation and test data; the first two may be None."""

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "_test"):
            return
        self._train, self._val, test = self.load()
        self._test = BatchesOf(test, self.test_subset(len(test)))

    def train_dataloader(self) -> DataLoader:
        chosen = self._training()[0]
        return self._loader(chosen, chosen.shuffled(self.batch_size))

    def val_dataloader(self) -> DataLoader:
        return self._in_order(self._training()[1])

    def test_dataloader(self) -> DataLoader:
        self.setup()
        if not hasattr(self, "_kept"):
            self._kept = self._read()
        if self._kept is None:
            return self._in_order(self._test)
        return DataLoader(self._kept, batch_size=None)  # type: ignore[arg-type]  # a list has all that it takes

    def _read(self) -> list[Any] | None:
        """The batches of the test split; None if they are too large to stay in memory."""
        kept, size = [], 0
        for batch in self._in_order(self._test):
            inputs, labels = inputs_and_labels(batch)
            size += sum(t.nbytes for t in [*tensors_in(inputs), labels])
            if size > KEPT_BYTES:
                return None
            kept.append(batch)
        return kept

    def _training(self) -> tuple[BatchesOf, BatchesOf]:
        self.setup()
        if self._train is None:
            raise FileNotFoundError("there are no training data; this data is for evaluation only")
        if self._val is not None:
            chosen = draw(len(self._train), self.seed)[: self.limit]
            return BatchesOf(self._train, chosen, self.seed), BatchesOf(
                self._val, self.test_subset(len(self._val))
            )
        train, val = self.cut(len(self._train))
        return BatchesOf(self._train, train, self.seed), BatchesOf(self._train, val)

    def _in_order(self, data: BatchesOf) -> DataLoader:
        return self._loader(data, torch.arange(len(data)).split(self.batch_size))

    def _loader(self, data: BatchesOf, batches: Any) -> DataLoader:
        return DataLoader(data, sampler=batches, batch_size=None, num_workers=self.num_workers)


def check_classes(given: int | None, found: int | None, where: object) -> int:
    """The number of classes, as set or as found in the data. Where both are known they must agree.

    Raises:
        ValueError: they disagree, neither is known, or the number is below 2.
    """
    if given is not None:
        whole("num_classes", given, least=2)
    if given is None and found is None:
        raise ValueError(f"the number of classes of {where} is not known; set num_classes=NUMBER")
    if given is not None and found is not None and given != found:
        raise ValueError(f"num_classes={given}, but {where} has {found} classes")
    return given or found or 0


def check_labels(labels: Tensor, samples: int, classes: int, where: str) -> None:
    """Check that there are samples and that each has a label from 0 to classes - 1.

    Raises:
        ValueError: a check fails; the message names `where`.
    """
    if not samples:
        raise ValueError(f"{where} has no samples")
    if labels.shape != (samples,):
        raise ValueError(f"{where} has {samples} samples, but {labels.numel()} labels; replace the data files")
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(
            f"{where} has label {labels[index]} for sample {index}, but labels must be 0 to {classes - 1}; "
            "correct the label, or num_classes="
        )


def check_channels(
    mean: Iterable[float], std: Iterable[float], channels: int = 3
) -> tuple[list[float], list[float]]:
    """The mean and the standard deviation of each channel, as lists.

    Raises:
        ValueError: there is not one of each for each channel, one is not finite, or a deviation is not above 0.
    """
    return _by_channel("mean", mean, channels), _by_channel("std", std, channels, above=0)


def _by_channel(name: str, values: Iterable[float], channels: int, above: float = -math.inf) -> list[float]:
    try:
        listed = list(values)
        for value in listed:
            number(name, value, above=above)
    except (TypeError, ValueError):
        listed = []
    if len(listed) != channels:
        allowed = "finite numbers" if above == -math.inf else f"finite numbers above {above:g}"
        raise ValueError(f"dataset.{name}={values}: must be {channels} {allowed}, one for each channel")
    return listed
