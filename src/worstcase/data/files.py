"""Data that lie in the reader's own files, whose content identifies them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

from worstcase.data.base import SampleDataModule, check_labels
from worstcase.digests import digest_of_files

PARTS = ("train", "val", "test")


class FileDataModule(SampleDataModule):
    """Data that lie in files, whose content identifies them.

    Args:
        files: by setting; the first must exist, others may be None.
        digest: that the content must have; None: any.
        options: see `SampleDataModule`.
    """

    def __init__(self, files: Mapping[str, str | None], *, digest: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.files = {name: Path(file) for name, file in files.items() if file is not None}
        self.digest = digest

    def prepare_data(self) -> None:
        for name, file in self.files.items():
            if not file.is_file():
                raise FileNotFoundError(f"no file {file}; set {name}=FILE")
        if self.digest not in (None, digest_of_files(self.files.values())):
            named = " and ".join(map(str, self.files.values()))
            raise ValueError(f"{named}: not the data of this run, they have changed; name the data that you mean")

    @abstractmethod
    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs and labels by part: test, and train and val if there are any."""

    def load(self) -> tuple[Any, Any, Any]:
        self.prepare_data()
        parts = self.read()
        for part, (inputs, labels) in parts.items():
            where = f"the {part} data of {self.files.get(part, next(iter(self.files.values())))}"
            if not inputs.ndim or not labels.ndim:
                raise ValueError(f"{where} must be arrays with an entry for each sample")
            if len(inputs) != len(labels) or not len(labels):
                raise ValueError(f"{where} have {len(inputs)} inputs and {len(labels)} labels; each needs one")
            if inputs.shape[1:] != parts["test"][0].shape[1:]:
                shapes = f"{tuple(inputs.shape[1:])}, not {tuple(parts['test'][0].shape[1:])} as those for testing"
                raise ValueError(f"{where} have inputs of {shapes}")
            if inputs.is_floating_point() and not bool(inputs.isfinite().all()):
                raise ValueError(f"{where} have an input that is not finite")
            if labels.ndim == 1 and not labels.is_floating_point():
                check_labels(labels, len(inputs), self.num_classes, where)
        train, val, test = (TensorDataset(*parts[part]) if part in parts else None for part in PARTS)
        return train, val, test
