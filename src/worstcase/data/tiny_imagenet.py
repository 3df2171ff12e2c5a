"""Tiny ImageNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from worstcase.data.augmentation import flip_and_crop, standardise
from worstcase.data.base import InMemoryDataModule, Split
from worstcase.data.imagefolder import IMAGENET_MEAN, IMAGENET_STD


class TinyImageNetDataModule(InMemoryDataModule):
    """Tiny ImageNet, 200 classes of 64x64 colour images; its validation images are the test split.

    Args:
        data_dir: the folder that holds ``tiny-imagenet-200``, as unpacked from its archive.
        augmented: flip and crop training images (padding 4).
        options: see `ImageDataModule`.
    """

    num_classes = 200

    def __init__(self, *, data_dir: str, augmented: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.augmented = Path(data_dir, "tiny-imagenet-200"), augmented

    def prepare_data(self) -> None:
        for part in ("wnids.txt", "train", "val/images", "val/val_annotations.txt"):
            if not (self.folder / part).exists():
                raise FileNotFoundError(
                    f"no Tiny ImageNet in {self.folder} (missing {part}); unpack tiny-imagenet-200.zip and set "
                    "data_dir=FOLDER to where it is"
                )

    def load(self) -> tuple[Split, Split]:
        classes = sorted((self.folder / "wnids.txt").read_text().split())
        if len(set(classes)) != len(classes) or len(classes) > self.num_classes:
            raise ValueError(f"{self.folder / 'wnids.txt'} is not that of the archive; unpack it again")
        index = {wnid: label for label, wnid in enumerate(classes)}
        train = [
            (path, label)
            for wnid, label in index.items()
            for path in sorted((self.folder / "train" / wnid / "images").glob("*.JPEG"))
        ]
        table = self.folder / "val" / "val_annotations.txt"
        test = []
        for line in table.read_text().splitlines():
            name, wnid, *_ = [*line.split("\t"), ""]
            if wnid not in index:
                raise ValueError(
                    f"{table} has a line {line!r} whose class is not in wnids.txt; unpack the archive again"
                )
            test.append((self.folder / "val" / "images" / name, index[wnid]))
        for place, found in ((self.folder / "train", train), (table, test)):
            if missing := {*index.values()} - {label for _, label in found}:
                wnid = classes[min(missing)]
                raise ValueError(f"{place} has no image of the class {wnid}; unpack the archive again")
        return _read(train), _read(test)

    def augment(self, images: Tensor) -> Tensor:
        return flip_and_crop(images, padding=4) if self.augmented else images

    def prepare(self, images: Tensor) -> Tensor:
        return standardise(super().prepare(images), IMAGENET_MEAN, IMAGENET_STD)


def _read(files: list[tuple[Path, int]]) -> Split:
    images = torch.empty(len(files), 3, 64, 64, dtype=torch.uint8)
    for image, (path, _) in zip(images, files, strict=True):
        try:
            decoded = decode_image(path, ImageReadMode.RGB)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a 64x64 JPEG: {str(error).splitlines()[0]}") from None
        if decoded.shape != image.shape:
            raise ValueError(f"{path} is not a 64x64 JPEG: it is {tuple(decoded.shape[1:])}")
        image.copy_(decoded)
    return images, torch.tensor([label for _, label in files], dtype=torch.long)
