"""What identifies the content of files, and of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 12


def digest_of_files(files: Iterable[Path]) -> str | None:
    """A digest of the content of some files, in their order; None if one is no file. A file is read once."""
    found = [_digest(file) for file in files]
    if not found or None in found:
        return None
    if len(found) == 1:
        return found[0]
    return hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()[:DIGITS]


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    """Add the names, types, shapes and values of some tensors to a digest."""
    import torch

    for name, t in tensors.items():
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _digest(file: Path) -> str | None:
    if not file.is_file():
        return None
    stat = file.stat()
    return _digest_of_version(file.absolute(), stat.st_mtime_ns, stat.st_size)


@cache
def _digest_of_version(file: Path, mtime_ns: int, size: int) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()[:DIGITS]
