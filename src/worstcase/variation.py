"""Samplers of random perturbations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def right_censored_gaussian(
    like: Mapping[str, Tensor], sigma: Mapping[str, Tensor], threshold: float
) -> dict[str, Tensor]:
    """Right-censored Gaussian noise (Eq. 11): N(0, sigma), values above threshold x sigma set to it.

    Args:
        like: tensors whose shapes, dtypes and devices the samples take, by name.
        sigma: sigma_t of each tensor in weight units, a scalar by name.
        threshold: th of Eq. 11, the cut-off in units of sigma_t.

    Returns:
        Samples by name, drawn from torch's default generator. Not bounded from below; with phi and Phi the
        standard normal density and distribution, their mean is
        sigma (threshold (1 - Phi(threshold)) - phi(threshold)).

    Example:
        >>> noise = right_censored_gaussian({"w": torch.empty(1000)}, {"w": torch.tensor(0.1)}, threshold=1.0)
        >>> bool(noise["w"].max() == 0.1)
        True
    """
    noise = {}
    for name, tensor in like.items():
        scale = sigma[name].to(tensor.dtype)
        noise[name] = torch.randn_like(tensor).mul_(scale).clamp_(max=threshold * scale)
    return noise
