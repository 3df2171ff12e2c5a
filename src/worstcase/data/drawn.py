"""Batches that are drawn by a seed: their order, and what random transforms draw in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.utils.data import Dataset, DistributedSampler, TensorDataset, default_collate

from worstcase.seeds import drawing_by

if TYPE_CHECKING:
    from worstcase.data.base import InMemoryDataModule


class DrawnBatches(Dataset[Any]):
    """Batches, indexed by a tensor of positions, in which random transforms draw.

    What they draw depends only on the seed and the positions; on the epoch too if each batch is one sample, which
    has the same position in all epochs.
    """

    seed: int
    order: ShuffledBatches | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def shuffled(self, batch_size: int) -> ShuffledBatches:
        """The order in which they are trained on."""
        self.order = ShuffledBatches(len(self), batch_size, self.seed)
        return self.order

    def drawing(self, positions: Tensor) -> AbstractContextManager[None]:
        """Within the block, what is drawn belongs to the batch at these positions."""
        epoch = [self.order.epoch] if self.order is not None and self.order.batch_size == 1 else []
        return drawing_by(self.seed, positions.tolist(), *epoch)


class BatchesOf(DrawnBatches):
    """Batches of the chosen samples of a data set."""

    def __init__(self, data: Any, chosen: Tensor, seed: int = 0) -> None:
        self.data, self.chosen, self.seed = data, chosen, seed

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, positions: Tensor) -> Any:
        chosen = self.chosen[positions]
        if isinstance(self.data, TensorDataset):
            return self.data[chosen]  # all at once, which is faster
        with self.drawing(positions):
            return default_collate([self.data[index] for index in chosen.tolist()])


class TrainingBatches(DrawnBatches):
    """Training batches, augmented and prepared on access."""

    def __init__(self, images: Tensor, labels: Tensor, data: InMemoryDataModule) -> None:
        self.images, self.labels, self.data, self.seed = images, labels, data, data.seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        with self.drawing(indices):
            return self.data.prepare(self.data.augment(self.images[indices])), self.labels[indices]


class ShuffledBatches(DistributedSampler[Tensor]):
    """Shuffled batches of indices. Only the seed and the epoch decide the order, so a resumed run sees the same.

    Processes that train together take batches in turn, each the same number. Left-over batches are dropped.
    A single sample that is left over joins the batch before, since batch norm cannot learn from it alone.

    Raises:
        ValueError: there are fewer batches than processes.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        processes, rank = (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)
        super().__init__(range(size), num_replicas=processes, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.size, self.batch_size = size, batch_size
        leaves_one = size % batch_size == 1 < min(size, batch_size)
        self.batches = -(-size // batch_size) - leaves_one
        if not len(self):
            raise ValueError(
                f"{size} training images make {self.batches} batches of {batch_size}, but each of {processes} "
                "processes needs one; raise limit=, or lower batch_size= or val_fraction="
            )

    def __len__(self) -> int:
        return self.batches // self.num_replicas

    def __iter__(self) -> Iterator[Tensor]:
        sizes = [self.batch_size] * (self.batches - 1)
        sizes.append(self.size - sum(sizes))
        batches = draw(self.size, self.seed * 1_000_003 + self.epoch).split(sizes)
        return iter(batches[self.rank :: self.num_replicas][: len(self)])


def draw(size: int, seed: int) -> Tensor:
    """The integers 0 to size - 1, shuffled by seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))
