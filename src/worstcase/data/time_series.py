"""Time series in CSV files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worstcase.checks import whole
from worstcase.data.files import FileDataModule


class TimeSeriesDataModule(FileDataModule):
    """Time series in CSV files: a line is a label and then the values of a sample.

    A first line whose label is no number is a header. With several channels a line has all values of the first,
    then those of the second, and so on. A sample is (channels, length), as `torch.nn.Conv1d` takes it. In files
    that end in .tsv, tabs separate the values.

    Args:
        test: file of the test data.
        train: file of the training data; None: for evaluation only.
        channels: of a sample.
        digest: that the files must have together; None: any.
        options: see `SampleDataModule`; num_classes must be given.
    """

    def __init__(
        self, *, test: str, train: str | None = None, channels: int = 1, digest: str | None = None, **options: Any
    ) -> None:
        super().__init__({"test": test, "train": train}, digest=digest, **options)
        whole("channels", channels)
        self.channels = channels

    def read(self) -> dict[str, tuple[Tensor, Tensor]]:
        parts = {}
        for part, file in self.files.items():
            table = _table(file)
            length = table.shape[1] - 1
            if length % self.channels:
                raise ValueError(f"{file}: {length} values of a line are no multiple of channels={self.channels}")
            parts[part] = table[:, 1:].float().unflatten(1, (self.channels, -1)), table[:, 0].long()
        return parts


def _table(file: Path) -> Tensor:
    """The numbers of a file, float64, a row for each line. Errors say where, but not what the file holds."""
    rows: list[np.ndarray] = []
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
        reader = csv.reader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
        try:
            for line in reader:
                if line and not (reader.line_num == 1 and not _is_number(line[0])):
                    rows.append(_numbers(line, len(rows[0]) if rows else None))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file}: line {reader.line_num} {_reason(error)}") from None
    if not rows:
        raise ValueError(f"{file} has no line with a label and values")
    return torch.from_numpy(np.stack(rows))


class _LineError(ValueError):
    """What is wrong in a line, without what it holds."""


def _numbers(line: list[str], expected: int | None) -> np.ndarray:
    numbers = np.array(line, np.float64)
    if len(numbers) < 2 or len(numbers) != (expected or len(numbers)):
        raise _LineError(
            f"has {len(numbers)} numbers, but each line needs a label and as many values as the first"
        )
    if not np.isfinite(numbers).all():
        raise _LineError("has a number that is not finite")
    if numbers[0] != round(numbers[0]):
        raise _LineError("has a label, its first number, that is not whole")
    return numbers


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _LineError) else "holds something that is no number"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
