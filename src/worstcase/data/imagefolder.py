"""Image files in one folder per class, or in one folder with a table of labels: ImageNet and your own."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from worstcase.checks import whole
from worstcase.data.base import KEPT_BYTES, ImageDataModule, check_channels, check_classes
from worstcase.data.drawn import BatchesOf, draw

MODES = {1: "L", 3: "RGB"}
"""What images are converted to, by channels."""

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ImageFolderDataModule(ImageDataModule):
    """Images that worker processes read from files on demand.

    ``folder/train/CLASS/*`` holds the training data; it may be missing if nothing is trained. The test split is
    ``folder/test/CLASS/*``, and ``folder/val/CLASS/*`` is for validation; without the former, as for ImageNet, val
    is the test split. Without these, it is the images in ``folder/images`` that ``folder/labels.csv`` lists, with
    columns ``file`` and ``label`` (0, 1, ...). Labels count the class folders in the order of their names. The
    order of the test images mixes the classes and is the same for every seed. Up to 2 GiB of test images stay in
    memory as tensors.

    A file is an image of any common format, or NumPy's .npy of shape (H, W) or (H, W, channels). Whole numbers of
    8 or 16 bits become 0..1, and floats stay as they are.

    Args:
        data_dir: the folder that contains `folder`.
        folder: path of the data set within `data_dir`.
        resize: the shorter side of a test image after scaling, in pixels; None does not scale.
        crop: side of the square crop in pixels: from the middle of a test image; from a training image at
            random, scaled and flipped.
        channels: 3, colour, to which images of 8 bits are converted; 1, grey, to which they are converted too; any
            other number is that of the files.
        mean: subtracted from each channel, whose pixels are 0..1.
        std: divides each channel after that, above 0.
        num_workers: processes that read images.
        options: see `ImageDataModule`; num_classes must be given.
    """

    def __init__(
        self,
        *,
        data_dir: str,
        folder: str,
        resize: int | None = 256,
        crop: int = 224,
        channels: int = 3,
        mean: list[float] = IMAGENET_MEAN,
        std: list[float] = IMAGENET_STD,
        num_workers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if resize is not None:
            whole("resize", resize, also="or null for no scaling")
        whole("crop", crop)
        whole("num_workers", num_workers, least=0)
        whole("channels", channels)
        mean, std = check_channels(mean, std, channels)
        self.channels = channels
        self.folder, self.num_workers = Path(data_dir, folder), num_workers
        finish = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        self._for_training = v2.Compose([v2.RandomResizedCrop(crop), v2.RandomHorizontalFlip(), *finish])
        scale = [] if resize is None else [v2.Resize(resize)]
        self.crop = crop
        self._kept: TensorDataset | None = None
        self._for_test = v2.Compose([*scale, v2.CenterCrop(crop), *finish])

    def prepare_data(self) -> None:
        if not self._test_place().exists():
            raise FileNotFoundError(
                f"no images in {self.folder}: it needs val/CLASS/*, test/CLASS/*, or labels.csv and images/, and "
                "train/CLASS/* for training; set data_dir= and folder="
            )

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "_test"):
            return
        place = self._test_place()
        is_table = place.suffix == ".csv"
        parts = [self.folder / "train"] if is_table else [place, self.folder / "train", self.folder / "val"]
        self._check_classes([part for part in dict.fromkeys(parts) if part.is_dir()], is_table)
        read = partial(read_image, channels=self.channels)
        self._test: Listed | DatasetFolder = (
            Listed(place, self._for_test, self.num_classes, read)
            if is_table
            else _in_folders(place, self._for_test, read)
        )

    def _check_classes(self, folders: list[Path], is_table: bool) -> None:
        """Check number and names of the class folders, which define the labels, without reading any image."""
        names = [{entry.name for entry in folder.iterdir() if entry.is_dir()} for folder in folders]
        for folder, found in zip(folders, names, strict=True):
            if is_table:
                _check_numbers(folder, found)
            check_classes(self.num_classes, len(found), folder)
        for folder, found in zip(folders[1:], names[1:], strict=True):
            if found != names[0]:
                only = [
                    f"only {place} has {', '.join(sorted(these - those)[:3])}"
                    for place, these, those in ((folders[0], names[0], found), (folder, found, names[0]))
                ]
                raise ValueError(f"the classes differ: {'; '.join(only)}; give both the same class folders")

    def _test_place(self) -> Path:
        test, val, table = (self.folder / name for name in ("test", "val", "labels.csv"))
        if val.exists():
            return test if test.is_dir() and any(entry.is_dir() for entry in test.iterdir()) else val
        return next((place for place in (test, table) if place.exists()), val)

    def train_dataloader(self) -> DataLoader:
        data = self._part("train", self._for_training)
        train = draw(len(data), self.seed)[: self.limit] if self._has_val() else self.cut(len(data))[0]
        chosen = BatchesOf(data, train, self.seed)
        return self._loader(chosen, chosen.shuffled(self.batch_size))

    def val_dataloader(self) -> DataLoader:
        data = self._part("val" if self._has_val() else "train", self._for_test)
        val = draw(len(data), seed=0)[: self.limit] if self._has_val() else self.cut(len(data))[1]
        return self._loader(BatchesOf(data, val), torch.arange(len(val)).split(self.batch_size))

    def test_dataloader(self) -> DataLoader:
        self.setup()
        order = draw(len(self._test), seed=0)[: self.limit]
        batches = torch.arange(len(order)).split(self.batch_size)
        if len(order) * self.channels * self.crop**2 * 4 > KEPT_BYTES:
            return self._loader(BatchesOf(self._test, order), batches)
        if self._kept is None:  # an attack reads them many times
            read = list(self._loader(BatchesOf(self._test, order), batches))
            self._kept = TensorDataset(*(torch.cat(parts) for parts in zip(*read, strict=True)))
        return DataLoader(self._kept, sampler=batches, batch_size=None)

    def _has_val(self) -> bool:
        """Whether there is a folder for validation, beside that of the test split."""
        val = self.folder / "val"
        return val.is_dir() and self._test_place() != val

    def _part(self, name: str, transform: Callable[[Any], Tensor]) -> DatasetFolder:
        self.setup()
        if not (self.folder / "train").is_dir():
            raise FileNotFoundError(
                f"no training images: {self.folder / 'train'} does not exist; this data is for evaluation only"
            )
        return _in_folders(self.folder / name, transform, partial(read_image, channels=self.channels))

    def _loader(self, data: BatchesOf, batches: Any) -> DataLoader:
        return DataLoader(data, sampler=batches, batch_size=None, num_workers=self.num_workers)


class Listed(Dataset):
    """Images of one folder, listed in a table."""

    def __init__(
        self,
        table: Path,
        transform: Callable[[Any], Tensor],
        num_classes: int,
        read: Callable[[Path], Any],
    ) -> None:
        self.folder, self.transform, self.read = table.parent / "images", transform, read
        try:
            with table.open(newline="", encoding="utf-8-sig") as file:
                self.files = [(row["file"] or "", int(row["label"])) for row in csv.DictReader(file)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{table} needs columns file and label, with labels 0, 1, ...: {error}") from None
        if not self.files:
            raise ValueError(f"{table} lists no images; it needs the header file,label and a line for each image")
        for name, label in self.files:
            if not 0 <= label < num_classes:
                raise ValueError(
                    f"num_classes={num_classes}, but {table} has label {label} for {name}; "
                    f"labels are 0 to {num_classes - 1}"
                )
        if outside := next((name for name, _ in self.files if not _is_below(name)), None):
            raise ValueError(f"{table} lists {outside}, which is not below {self.folder}")
        if missing := next((name for name, _ in self.files if not (self.folder / name).is_file()), None):
            raise FileNotFoundError(f"{table} lists {missing}, which is not in {self.folder}")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        name, label = self.files[index]
        return self.transform(self.read(self.folder / name)), label


def _check_numbers(folder: Path, names: set[str]) -> None:
    """Check that folders that are named by numbers have these as labels, as the table beside them has."""
    if all(map(str.isdecimal, names)) and [int(name) for name in sorted(names)] != [*range(len(names))]:
        raise ValueError(
            f"{folder}: labels count its folders in the order of their names as text, so they are not the "
            f"labels of labels.csv; name them {'0' * len(str(len(names) - 1))} to {len(names) - 1}"
        )


def _is_below(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def read_image(path: str | Path, channels: int = 3) -> Any:
    """Read an image file: what torchvision's transforms take, of so many channels.

    Raises:
        ValueError: it cannot be read, or has other channels; the message names it.
    """
    try:
        if Path(path).suffix == ".npy":
            return _as_image(np.load(path, allow_pickle=False), channels)
        with Image.open(path) as image:
            if image.mode.startswith("I;16") or (
                image.mode == "I" and image.format == "PNG"
            ):  # converting cuts it
                return _as_image(np.asarray(image).astype(np.uint16), channels)
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels have 32 bits ({image.mode}); save them as .npy")
            if channels in MODES:
                return image.convert(MODES[channels])
            if len(image.getbands()) != channels:
                raise ValueError(f"it has {len(image.getbands())} channels, not {channels}")
            image.load()
            return image
    except Exception as error:  # image readers raise many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read the image {path}: {reason}") from None


def _as_image(values: np.ndarray, channels: int) -> Tensor:
    """An image (channels, H, W) of floats from an array (H, W) or (H, W, channels)."""
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] != channels:
        raise ValueError(f"its shape is {values.shape}, not (height, width, {channels}); channels= sets the last")
    if values.dtype in (np.uint8, np.uint16):
        values = values / np.float32(np.iinfo(values.dtype).max)
    elif not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"its numbers are {values.dtype}; save them as uint8, uint16 or floats")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))


def _in_folders(folder: Path, transform: Callable[[Any], Tensor], read: Callable[[Path], Any]) -> DatasetFolder:
    try:
        return DatasetFolder(str(folder), read, (*IMG_EXTENSIONS, ".npy"), transform)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: {error}") from None
