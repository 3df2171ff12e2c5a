"""CIFAR-10."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from worstcase.data.augmentation import flip_and_crop, standardise
from worstcase.data.base import InMemoryDataModule, Split, check_channels

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

# MD5 of the pixels of each file, uint8 (10000, 3072). A repacked archive passes; changed pixels do not.
PIXELS = {
    "data_batch_1": "e089133f4b27fe2499933fb92fbbcc51",
    "data_batch_2": "1de5dd711a8f0bcacfb9a30601172ecc",
    "data_batch_3": "28797e8984ca472a21646d72d5b1660b",
    "data_batch_4": "21ac5d7ad76f680cc37bf831afe4901e",
    "data_batch_5": "5b7262fae1c886554070552d6ce4fa79",
    "test_batch": "f1aa22116df97725db0e47461c45a82b",
}


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images, 32x32, in colour.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-py``, in torchvision's layout.
        download: download the data there if they are missing.
        augmented: flip and crop training images (padding 4).
        mean: subtracted from each channel, whose pixels are 0..1; by default the data set's own mean.
        std: divides each channel after that, above 0; by default the data set's own.
        options: see `ImageDataModule`.
    """

    num_classes = 10

    def __init__(
        self,
        *,
        data_dir: str,
        download: bool = False,
        augmented: bool = True,
        mean: list[float] = MEAN,
        std: list[float] = STD,
        batch_size: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.folder, self.download, self.augmented = Path(data_dir, CIFAR10.base_folder), download, augmented
        self.mean, self.std = check_channels(mean, std)

    def prepare_data(self) -> None:
        missing = [name for name in PIXELS if not (self.folder / name).is_file()]
        if missing and self.download:
            CIFAR10(self.folder.parent, download=True)
        elif missing:
            raise FileNotFoundError(
                f"no CIFAR-10 in {self.folder} (missing {', '.join(missing)}); set data_dir=FOLDER to where "
                f"{CIFAR10.base_folder} is, or allow the download with download=True"
            )

    def load(self) -> tuple[Split, Split]:
        images, labels = zip(*(_read(self.folder / name) for name in PIXELS), strict=True)
        return (torch.cat(images[:5]), torch.cat(labels[:5])), (images[5], labels[5])

    def augment(self, images: Tensor) -> Tensor:
        return flip_and_crop(images, padding=4) if self.augmented else images

    def prepare(self, images: Tensor) -> Tensor:
        return standardise(super().prepare(images), self.mean, self.std)


def _read(path: Path) -> Split:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="latin1").load()
        pixels = np.ascontiguousarray(content["data"], dtype=np.uint8)
        labels = torch.tensor(content["labels"])
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"cannot read {path}: it is truncated or not a CIFAR-10 batch ({error})") from None
    if hashlib.md5(pixels.tobytes()).hexdigest() != PIXELS[path.name]:
        raise ValueError(f"the pixels in {path} are not CIFAR-10's; unpack or download the data again")
    return torch.from_numpy(pixels).view(-1, 3, 32, 32), labels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles only arrays and plain types; a file with anything else is refused, not executed."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        if (root == "numpy" and name in ("_reconstruct", "ndarray", "dtype")) or module == "_codecs":
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
