"""Files that are there whole, or not at all. Needs no PyTorch."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, fsync, rename. A crash leaves no half-written file.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; it names the file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a.txt"), b"a")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:  # for a full disk, it does not name the file
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        beside.unlink(missing_ok=True)
