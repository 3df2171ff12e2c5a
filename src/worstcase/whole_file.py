"""Files that are there whole, or not at all. Needs no PyTorch."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from glob import escape
from pathlib import Path

DAY = 86400  # seconds


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, fsync, rename. A crash leaves no half-written file.

    A killed write leaves its temporary file. A later write deletes it if it is a day old; a younger one may be of
    a process that is at work, on another host.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; it names the file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_whole(Path(folder, "a.txt"), b"a")
        ...     [file.name for file in Path(folder).iterdir()]
        ['a.txt']
    """
    _delete_left(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
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


def _delete_left(path: Path) -> None:
    for part in path.parent.glob(f".{escape(path.name)}.[0-9]*.part"):
        with suppress(OSError):  # deleted meanwhile, or another user's
            if part.stat().st_mtime < time.time() - DAY:
                part.unlink()
