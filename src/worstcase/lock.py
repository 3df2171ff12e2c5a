"""One process at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a file for this process alone within a block, however the process ends.

    If another process has it, wait until it is free, or yield False.

    Where the file system has no locks this is said, and the block is run.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        log.warning("%s cannot be locked (%s): start no second process there", file.parent, reason)
    try:
        yield True
    finally:
        lock.release()
