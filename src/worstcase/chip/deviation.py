"""A weight and its deviation, added up."""

from __future__ import annotations

import torch
from torch import Tensor

from worstcase.chip.float64 import in_float64


def deviate(weight: Tensor, deviation: Tensor) -> Tensor:
    """W + d, added in at least float32 before it is cast to the weight's dtype.

    A cast to fewer digits is toward W: what results deviates by d at most.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    exact = weight.to(wide) + deviation.to(wide)
    if weight.dtype == wide:
        return exact
    cast = exact.to(weight.dtype)
    with torch.no_grad():
        beyond = (in_float64(cast) - in_float64(weight)).abs() > in_float64(deviation).abs()
        nearer = torch.where(beyond.to(cast.device), torch.nextafter(cast, weight), cast)
    return cast + (nearer - cast).detach()
