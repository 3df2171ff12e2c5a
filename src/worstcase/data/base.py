"""Images in memory, cut into training, validation and test splits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

Split = tuple[Tensor, Tensor]


class InMemoryDataModule(L.LightningDataModule):
    """Images and labels held as tensors and sliced by batch, which for small images beats worker processes.

    The validation split is drawn from the training data by seed; the test split never depends on the seed.

    Args:
        batch_size: images a batch, 1 or more; the last batch of an epoch may be smaller.
        val_fraction: share of the training data that is held out for validation, above 0 and below 1.
        seed: draws the validation split and the order of each training epoch.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    """Channels, height, width."""

    def __init__(self, *, batch_size: int = 128, val_fraction: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"dataset.batch_size={batch_size}: must be 1 or more")
        if not 0 < val_fraction < 1:
            raise ValueError(f"dataset.val_fraction={val_fraction}: must be above 0 and below 1")
        self.batch_size, self.val_fraction, self.seed = batch_size, val_fraction, seed
        self._splits: dict[str, Split] = {}

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """The training and the test images, (N, C, H, W) in [0, 1], and labels, (N,)."""

    def setup(self, stage: str | None = None) -> None:
        if self._splits:
            return
        (images, labels), test = self.load()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        held_out = max(1, round(self.val_fraction * len(images)))
        val, train = order[:held_out], order[held_out:]
        self._splits = {
            "train": (images[train], labels[train]),
            "val": (images[val], labels[val]),
            "test": test,
        }

    def train_dataloader(self) -> DataLoader:
        data = TensorDataset(*self._splits["train"])
        return DataLoader(
            data, sampler=ShuffledBatches(len(data), self.batch_size, self.seed), batch_size=None
        )

    def val_dataloader(self) -> DataLoader:
        return self._in_order("val")

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str) -> DataLoader:
        self.setup()
        data = TensorDataset(*self._splits[split])
        return DataLoader(data, sampler=torch.arange(len(data)).split(self.batch_size), batch_size=None)


class ShuffledBatches(Sampler[Tensor]):
    """Indices by batch, in an order that only the seed and the epoch decide: a resumed run sees the same."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed, self.epoch = size, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).split(self.batch_size))
