"""A lock on a file, for one process at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def locked(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock a file for this process within a block. The lock is released however the process ends.

    Yields whether the block has the lock: if another process holds it, yields False, or waits with `wait`.

    If the file system has no locks, the block runs after a warning.
    """
    lock = FileLock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        log.warning("%s cannot be locked (%s): do not start a second process there", file.parent, reason)
    try:
        yield True
    finally:
        lock.release()
