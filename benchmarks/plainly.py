"""The paper's two attacks in plain PyTorch, as one would write them down first: what ours are measured against.

The weights themselves are moved and put back. Nothing is checked, counted or recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Batches = Sequence[tuple[Tensor, Tensor]]


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """p2 of Eq. 7."""
    right = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return (right - others).clamp_min(0)


@torch.no_grad()
def accuracy(net: nn.Module, batches: Batches) -> float:
    return sum(int((net(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def flwc(net: nn.Module, batches: Batches, thg: float, steps: int = 10) -> float:
    """F-LWC (Algorithm 1): the lowest accuracy that its steps come to."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    programmed = [w.detach().clone() for w in weights]
    ends = [thg * w.abs().max() for w in programmed]
    lowest = accuracy(net, batches)
    for _ in range(steps):
        for x, y in batches:
            gradients = torch.autograd.grad(hinge(net(x), y).sum(), weights)
            with torch.no_grad():
                for w, g, start, end in zip(weights, gradients, programmed, ends, strict=True):
                    w.sub_(g.sign() * end / steps).clamp_(start - end, start + end)
        lowest = min(lowest, accuracy(net, batches))
    _put_back(weights, programmed)
    return lowest


def lwc(net: nn.Module, batches: Batches, thg: float, epochs: int = 20, trials: int = 8) -> float:
    """LWC (Eq. 10): Adam on c x p + L, with c bisected for the largest whose result stays in the box."""
    weights = [p for p in net.parameters() if p.ndim > 1]
    programmed = [w.detach().clone() for w in weights]
    ends = [thg * w.abs().max() for w in programmed]
    low, high, c, lowest = 1e-10, math.inf, 1e3, accuracy(net, batches)
    for _ in range(trials):
        _put_back(weights, programmed)
        optimiser = torch.optim.Adam(
            [{"params": [w], "lr": 0.02 * float(e)} for w, e in zip(weights, ends, strict=True)]
        )
        for _ in range(epochs):
            for x, y in batches:
                size = torch.stack(
                    [((w - s) / e).abs().amax() for w, s, e in zip(weights, programmed, ends, strict=True)]
                )
                loss = c * hinge(net(x), y).mean() + size.amax()
                for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    w.grad = g
                optimiser.step()
        with torch.no_grad():
            inside = all(
                bool(((w - s).abs() <= e).all()) for w, s, e in zip(weights, programmed, ends, strict=True)
            )
            for w, s, e in zip(weights, programmed, ends, strict=True):
                w.clamp_(s - e, s + e)
        lowest = min(lowest, accuracy(net, batches))
        low, high = (c, high) if inside else (low, c)
        if high == math.inf:
            break
        c = math.sqrt(low * high)
    _put_back(weights, programmed)
    return lowest


@torch.no_grad()
def _put_back(weights: Sequence[Tensor], programmed: Sequence[Tensor]) -> None:
    for w, start in zip(weights, programmed, strict=True):
        w.copy_(start)
        w.grad = None
