"""A bound from below on the worst case: the decisions that are right on every chip in the box."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worstcase.attacks.passes import on_its_device
from worstcase.batches import Loader
from worstcase.certificate.interval import IntervalBounds, check_provable
from worstcase.certificate.linear import LinearBounds
from worstcase.certificate.products import Unsupported, margins_of
from worstcase.certificate.tracing import first_line
from worstcase.checks import choice
from worstcase.chip.crossbar import Crossbar, check_crossbar
from worstcase.chip.modes import evaluating
from worstcase.seeds import seeded
from worstcase.task import check, logits_of


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The proof for one network, reference set and th_g."""

    method: str
    thg: float
    certified: Tensor = field(repr=False)
    """For each decision, in the order of the reference set, whether it is proven right on every chip."""
    seconds: float
    note: str | None = None
    """Why it is not by the method that was asked for."""

    @property
    def accuracy(self) -> float:
        """The share of them, 0..1: no chip in the box is below."""
        return self.certified.double().mean().item()


METHODS: dict[str, type[IntervalBounds]] = {"interval": IntervalBounds, "linear": LinearBounds}
SHARES = (0.99, 0.95, 0.9)
FINEST = 1e-6  # the smallest th_g that is asked for


@torch.no_grad()
def certify(crossbar: Crossbar, loader: Loader, method: str = "interval") -> Certificate:
    """Prove for each decision, if it can be, that it is right on every chip in the box.

    By intervals, each layer's outputs are bounded over all weights in their box and all inputs in their interval,
    the last layer's together with the margin, z_label - z_other. Where nothing is proven the network need not
    fail: intervals forget that a layer's outputs depend on the same inputs, and all positions of a convolution on
    the same weights. Linear bounds remember more of both, see `worstcase.certificate.backward`; they are asked
    where intervals leave a decision open, and so never prove less. Rounding is counted, as
    `worstcase.certificate.products` tells. A random corner of the box is computed for each batch: it must keep all
    bounds, or nothing is proven.

    Args:
        crossbar: the network, in float32 or float64; left as it is, and computed in eval mode.
        loader: batches (inputs, labels); each decision is proven by itself.
        method: ``interval``, or ``linear``.

    Raises:
        Unsupported: a part of the network has no rule; the message names it.
        ValueError: there are no samples, a label is no class, or no such method.

    Cost: 4 to 6 forward passes by intervals, up to about 100 by linear bounds, fewer the less is left open.
    Memory: a few times that of the samples that are bounded at once, as many as a cache holds, and 32 MB for
    linear bounds.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.25)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> images, labels = torch.tensor([[1.0, 0.9], [5.0, 0.0]]), torch.tensor([0, 0])
        >>> certificate = certify(crossbar, [(images, labels)])
        >>> certificate.certified, certificate.accuracy
        (tensor([False,  True]), 0.5)
    """
    check_crossbar(crossbar)
    choice("method", method, METHODS)
    started = time.perf_counter()
    certified = []
    bounds = None
    generator = seeded("a corner")
    with evaluating(crossbar):
        for images, labels in on_its_device(crossbar, loader):
            check_provable(images, labels)
            if not len(labels):
                continue
            if bounds is None:
                outputs = crossbar(images)  # which looks at the network's manners
                with _unsupported_if_it_fails(crossbar):
                    bounds = METHODS[method](crossbar)
                    bounds.compare(images, outputs)
                    # which tells how wide the network is, and how many classes it has
                    classes = bounds.margins(images[:1], torch.zeros_like(labels[:1], dtype=torch.long)).shape[1]
            check(images.new_zeros(len(labels), classes), labels)
            corner = crossbar.box.sample("vertex", generator)
            led = margins_of(logits_of(crossbar(images, corner)), labels.long())
            # which looks at the first two samples that differ
            if crossbar.depends_on_the_batch:
                raise Unsupported("answers that depend on the other samples of a batch, or may")
            parts = torch.arange(len(labels), device=labels.device).split(bounds.at_once)
            with _unsupported_if_it_fails(crossbar):
                least = torch.cat([bounds.margins(images[part], labels[part].long()) for part in parts])
            if bool((~(led >= least) & ~least.isnan()).any()):
                raise Unsupported(f"{type(crossbar.net).__name__}, of which a corner of the box breaks the bounds")
            certified.append((least > 0).all(1).cpu())
    if not certified:
        raise ValueError("the reference set has no samples")
    return Certificate(
        method=method,
        thg=crossbar.thg,
        certified=torch.cat(certified),
        seconds=time.perf_counter() - started,
    )


@contextmanager
def _unsupported_if_it_fails(crossbar: Crossbar) -> Iterator[None]:
    """Whatever a foreign network makes of bounds: an evaluation ends without a proof, and not without a result."""
    try:
        yield
    except Unsupported:
        raise
    except Exception as error:
        raise Unsupported(f"{type(crossbar.net).__name__}: {first_line(error)}") from error


def largest_thg(
    crossbar: Crossbar,
    loader: Loader,
    accuracy: float,
    found: list[Certificate],
    *,
    method: str = "interval",
    low: float = FINEST,
    high: float = 1.0,
    precision: float = 0.02,
) -> float | None:
    """The largest th_g at which an accuracy is proven, by bisection.

    Args:
        crossbar, loader, method: see `certify`.
        accuracy: to be proven, 0..1.
        found: certificates of the same network and method, which spare it some; those that it makes are added.
        low: the smallest th_g that is asked for, above 0.
        high: above this nobody asks.
        precision: the relative width to which it is found.

    Returns:
        None where it is not proven even at the smallest.

    Raises:
        Unsupported: see `certify`.
    """

    def proven(thg: float) -> bool:
        if not any(one.thg == thg for one in found):
            with crossbar.bounded_by(thg):
                found.append(certify(crossbar, loader, method))
        return next(one.accuracy for one in found if one.thg == thg) >= accuracy

    low = max((one.thg for one in found if one.accuracy >= accuracy), default=low)
    high = min([high, *(one.thg for one in found if one.accuracy < accuracy)])
    if not proven(low):
        return None
    while high > (1 + precision) * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if proven(middle) else (low, middle)
    return low


def largest_thgs(crossbar: Crossbar, loader: Loader) -> dict[float, float | None]:
    """The largest th_g at which intervals prove 99, 95 and 90 % of the decisions right, to 2 %.

    Returns:
        By the share; None where it is not proven even at th_g 10^-6.

    Raises:
        Unsupported: see `certify`.

    Cost: about 20 times that of intervals.

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.25)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> largest = largest_thgs(crossbar, [(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))])
        >>> 0.49 < largest[0.99] < 0.5  # half of the largest weight, up to which no chip can exchange the two
        True
    """
    found: list[Certificate] = []
    return {share: largest_thg(crossbar, loader, share, found) for share in SHARES}
