"""Replaces the files of a report in its folder as a whole, and touches no other file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from worstcase.lock import locked

LIST = ".report.json"
"""Lists the report's files in its folder, each with the SHA-256 of the contents that it may have."""
LOCK = ".worstcase-report.lock"
_KIND = "worstcase report"
_START = json.dumps({_KIND: 1})[:-1].encode()
_MOST_BYTES = 1_000_000  # size of a list; a larger file is not one


def replace_files(out: Path, files: Mapping[str, bytes], own: re.Pattern[str]) -> None:
    """Write a report's files, then delete the files of an earlier report that are not among them.

    No file is ever half written, and if a report was killed, the next one finishes its work. A file belongs to an
    earlier report if `LIST` names it and its content has not changed.

    Args:
        out: the folder; created if it is missing.
        files: contents by name, in the order of writing: the page comes after the files that it links to.
        own: matches the names that a report's files can have. Other names in a list are ignored.

    Raises:
        ValueError: the folder is a file, it holds a file with one of these names that no report made, or another
            report is being written there. Nothing was written or deleted.
        OSError: the folder cannot be written to.
    """
    try:
        for path in (out, *out.parents):
            if path.exists() and not path.is_dir():
                raise ValueError(f"{path} is a file, not a folder; choose another out=")
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK) as free:
            if not free:
                raise ValueError(f"another report is being written to {out}; wait for it, or choose another out=")
            try:
                _replace(out, files, own)
            finally:
                with suppress(OSError):
                    (out / LOCK).unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"the report cannot be written to {out}: {reason}; choose another out=") from error


def _replace(out: Path, files: Mapping[str, bytes], own: re.Pattern[str]) -> None:
    listed, token = _read_list(out / LIST, own)
    before = {name: found for name in listed if (found := _digest(out / name)) in listed[name]}
    for name in files:
        if name not in before and os.path.lexists(out / name):
            raise _foreign(out / name)
    _clear(out, listed, token)

    token = secrets.token_hex(16)
    after = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    either = {name: [of[name] for of in (before, after) if name in of] for name in before | after}
    _write_list(out, either, token)
    for name, content in files.items():
        _write(out / name, content, _beside(out / name, token))
    for name in before.keys() - after.keys():
        if _digest(out / name) == before[name]:
            (out / name).unlink()
    _write_list(out, {name: [digest] for name, digest in after.items()}, token)


def _read_list(path: Path, own: re.Pattern[str]) -> tuple[dict[str, list[str]], str]:
    """The digests that each listed file may have, and the token of temporary names. Bad entries are ignored.

    Raises:
        ValueError: there is a file of this name that is not a list.
    """
    if not os.path.lexists(path):
        return {}, ""
    try:
        content = json.loads(_read(path) or "")
    except (ValueError, RecursionError) as error:
        raise _foreign(path) from error
    if not isinstance(content, dict) or content.get(_KIND) != 1 or not isinstance(content.get("files"), dict):
        raise _foreign(path)
    files = {
        name: [digest for digest in digests if isinstance(digest, str)]
        for name, digests in content["files"].items()
        if own.fullmatch(name) and isinstance(digests, list)
    }
    token = content.get("token")
    return files, token if isinstance(token, str) and re.fullmatch("[0-9a-f]{32}", token) else ""


def _write_list(out: Path, files: Mapping[str, list[str]], token: str) -> None:
    content = json.dumps({_KIND: 1, "token": token, "files": files}) + "\n"
    _write(out / LIST, content.encode(), _beside(out / LIST))


def _write(path: Path, content: bytes, beside: Path) -> None:
    with beside.open("xb") as file:  # "x" does not follow a link
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _beside(path: Path, token: str = "") -> Path:
    """The temporary file that becomes `path`. That of a list has no token: the token is in the list."""
    return path.with_name("".join([".", path.name.lstrip("."), f".{token}" if token else "", ".new"]))


def _clear(out: Path, listed: Mapping[str, list[str]], token: str) -> None:
    """Delete the temporary files of a report that was killed.

    Raises:
        ValueError: the file in the place of an unfinished list is not one; nothing was deleted.
    """
    unfinished = _beside(out / LIST)
    if os.path.lexists(unfinished):
        content = _read(unfinished)
        if content is None or not (content.startswith(_START) or _START.startswith(content)):
            raise _foreign(unfinished)
        unfinished.unlink()
    for name in listed if token else ():
        if _is_plain_file(beside := _beside(out / name, token)):
            beside.unlink()


def _foreign(path: Path) -> ValueError:
    return ValueError(f"{path} was not made by a report, or was changed since; move it, or choose another out=")


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _read(path: Path) -> bytes | None:
    """The content of a list; None if the path cannot be one: a link, a folder or a large file."""
    return path.read_bytes() if _is_plain_file(path) and path.stat().st_size <= _MOST_BYTES else None


def _digest(path: Path) -> str | None:
    if not _is_plain_file(path):
        return None
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
