"""th_g of each weight, or of each array, in a file: what `worstcase.verify` shares out and a Crossbar takes.

The file is safetensors, with a tensor for each array, named as it: of the weight's shape, or one number for all
its weights. A name may be a pattern, of which the first that fits counts: the order is in the file's metadata, and
without it names come before patterns, and long patterns before short ones. Values are th_g, 0 or more, in units of
the full scale. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from worstcase.digests import DIGITS
from worstcase.whole_file import write_whole

SEPARATOR = "\n"
"""Of the names in the metadata."""


def load_tolerances(file: str | Path, *, digest: str | None = None) -> dict[str, float | Tensor]:
    """Read th_g of each array: a number, or a tensor with one for each weight. `Crossbar` takes it as ``thg``.

    Args:
        file: see the module.
        digest: of the content that is expected; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or is not the one that is expected.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file of tolerances at {file}")
    try:
        with safe_open(file, "pt") as content:
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
            told = (content.metadata() or {}).get("order", "").split(SEPARATOR)
    except Exception as error:  # a broken file can make the reader fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{file} is no safetensors file of tolerances: {reason}") from None
    _check(file, found)
    order = told if sorted(told) == sorted(found) else sorted(found, key=_rank)
    tolerances = {name: found[name] if found[name].ndim else found[name].item() for name in order}
    if digest is not None and digest_of(tolerances) != digest:
        raise ValueError(f"{file} holds other tolerances than those of the record; their digest is not {digest}")
    return tolerances


def _check(file: Path, tolerances: Mapping[str, Tensor]) -> None:
    if not tolerances:
        raise ValueError(f"{file} holds no tolerances: it needs a tensor of th_g for each array")
    for name, t in tolerances.items():
        if not t.is_floating_point() or not bool((t.isfinite() & (t >= 0)).all()) or not t.numel():
            raise ValueError(f"{file}: {name} must hold th_g, finite floating-point numbers, 0 or more")


def _rank(name: str) -> tuple[bool, int, str]:
    return _is_pattern(name), -len(name), name


def _is_pattern(name: str) -> bool:
    return bool(set(name) & set("*?["))


def save_tolerances(file: str | Path, tolerances: Mapping[str, float | Tensor]) -> None:
    """Write th_g of each array: a number, or a tensor with one for each weight. Nothing is rounded.

    Args:
        file: ends in .safetensors; in a folder that is there.
        tolerances: 0 or more, in units of the full scale, by names or patterns of arrays.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the name of the file, or a number in it, is one that would not be read again.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     save_tolerances(f"{folder}/own.safetensors", {"conv": 0.03, "fc": torch.tensor([[0.01, 0.05]])})
        ...     load_tolerances(f"{folder}/own.safetensors")
        {'conv': 0.03, 'fc': tensor([[0.0100, 0.0500]])}
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: the name of a file of tolerances must end in .safetensors")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent} for {file.name}")
    tensors = {name: _tensor(one).cpu().contiguous().clone() for name, one in tolerances.items()}
    _check(file, tensors)
    write_whole(file, save(tensors, metadata={"order": SEPARATOR.join(tolerances)}))


def described(tolerances: Mapping[str, float | Tensor], file: str) -> dict[str, Any]:
    """What a record says of tolerances in a file: where it is, what identifies its content, and a summary."""
    tensors = {name: _tensor(one) for name, one in tolerances.items()}
    return {
        "file": file,
        "digest": digest_of(tolerances),
        "largest": max(t.amax().item() for t in tensors.values()),
        "by_array": {
            name: {"least": t.amin().item(), "mean": t.double().mean().item(), "largest": t.amax().item()}
            for name, t in tensors.items()
        },
    }


def digest_of(tolerances: Mapping[str, float | Tensor]) -> str:
    """A digest of the numbers, wherever they are and in whatever precision; of patterns the order counts too."""
    digest = hashlib.sha256()
    ordered = any(map(_is_pattern, tolerances))
    for name, one in tolerances.items() if ordered else sorted(tolerances.items()):
        t = _tensor(one).cpu().double().contiguous()
        digest.update(f"{name} {tuple(t.shape)} ".encode() + t.numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _tensor(one: float | Tensor) -> Tensor:
    return torch.as_tensor(one, dtype=None if isinstance(one, Tensor) else torch.double).detach()
