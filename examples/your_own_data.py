"""Real digits as arrays, time series, images and data sets: each form of data that the commands read.

python -m examples.your_own_data            # writes digits/, which the commands of docs/your_network.md read
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from worstcase.data import MNIST5k


class RowsNetwork(nn.Sequential):
    """For time series (28 channels, length 28)."""

    def __init__(self) -> None:
        super().__init__(nn.Conv1d(28, 32, 5), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 24, 10))


def data() -> tuple[TensorDataset, TensorDataset]:
    """Training and test data. A third between them would be for validation; any `Dataset` will do."""
    train, test = MNIST5k().load()
    return TensorDataset(train[0] / 255, train[1]), TensorDataset(test[0] / 255, test[1])


def write(folder: Path) -> None:
    """Some of these digits in files."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, size, (images, labels) in zip(("train", "test"), (1000, 300), MNIST5k().load(), strict=True):
        images, labels = images[:size], labels[:size]
        arrays |= {f"{part}_inputs": images.numpy(), f"{part}_labels": labels.numpy()}
        values = (images.flatten(1).double() / 255).round(decimals=3).tolist()
        with (folder / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([label, *row] for label, row in zip(labels.tolist(), values, strict=True))
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = folder / "images" / part / str(int(label))
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(place / f"{number}.png")
    np.savez(folder / "digits.npz", **arrays)


if __name__ == "__main__":
    write(Path("digits"))
