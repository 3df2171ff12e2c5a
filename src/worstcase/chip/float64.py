"""Float64 where a device has it, else on the CPU: Apple's GPU has none."""

from __future__ import annotations

import torch
from torch import Tensor


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type != "mps"


def in_float64(x: Tensor) -> Tensor:
    """The same in float64: where it is, or on the CPU if its device has none."""
    return (x if has_float64(x.device) else x.cpu()).double()


def like(t: Tensor, x: Tensor) -> Tensor:
    """x in the dtype of t and where t is; the dtype first, as x may be in float64."""
    return x.to(t.dtype).to(t.device)
