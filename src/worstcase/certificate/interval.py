"""A bound from below on the worst case, by interval arithmetic: what no chip in the box does worse than."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worstcase.attacks.base import on_its_device
from worstcase.certificate.network import Bounds, Unsupported
from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.task import Loader


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The proof for one network, reference set and th_g."""

    method: str
    thg: float
    certified: Tensor = field(repr=False)
    """For each decision, in the order of the reference set, whether it is proven right on every chip."""
    seconds: float

    @property
    def accuracy(self) -> float:
        """The share of them, 0..1: no chip in the box is below."""
        return self.certified.double().mean().item()


@torch.no_grad()
def certify(crossbar: Crossbar, loader: Loader) -> Certificate:
    """Prove for each decision, if it can be, that it is right on every chip in the box.

    Each layer's outputs are bounded over all weights in their box and all inputs in their interval. The last
    layer's is bounded together with the margin, z_label - z_other. Rounding is counted, as
    `worstcase.certificate.products` tells. Where nothing is proven the network need not fail: the bounds forget
    that a layer's outputs depend on the same inputs, and all positions of a convolution on the same weights.

    Args:
        crossbar: the network, in float32 or float64; left as it is, and computed in eval mode.
        loader: batches (inputs, labels); each decision is proven by itself.

    Raises:
        Unsupported: a part of the network has no rule; the message names it.
        ValueError: there are no samples.

    Cost: 3 to 5 forward passes. Memory: a few times that of one batch.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.25)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> images, labels = torch.tensor([[1.0, 0.9], [5.0, 0.0]]), torch.tensor([0, 0])
        >>> certificate = certify(crossbar, [(images, labels)])
        >>> certificate.certified, certificate.accuracy
        (tensor([False,  True]), 0.5)
    """
    started = time.perf_counter()
    certified = []
    bounds = None
    with evaluating(crossbar):
        for images, labels in on_its_device(crossbar, loader):
            if bounds is None:
                crossbar(images)  # which looks whether the network multiplies with its arrays as they are
                bounds = Bounds(crossbar)
            if labels.ndim != 1 or labels.is_floating_point() or not isinstance(images, Tensor):
                raise Unsupported("decisions other than one of several classes for each input tensor")
            certified.append((bounds.margins(images, labels.long()) > 0).all(1).cpu())
    if not certified:
        raise ValueError("the reference set has no samples")
    return Certificate(
        method="interval",
        thg=crossbar.thg,
        certified=torch.cat(certified),
        seconds=time.perf_counter() - started,
    )
