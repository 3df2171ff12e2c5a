"""Symmetric uniform quantisation with a straight-through gradient, as the paper's authors have it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from worstcase.checks import whole

RANGE_DECAY = 0.9  # of the moving average of a layer's output range


def quantise(x: Tensor, full_range: Tensor, bits: int) -> Tensor:
    """Round to the nearest multiple of range / (2^bits - 1) within the range: 2^bits - 1 levels and a sign.

    What lies outside the range is clamped to it. The gradient is straight through, also there: saturation
    is no place where an attack would find no gradient.

    Args:
        x: any shape, floating.
        full_range: a scalar, 0 or more, in the units of x.
        bits: N, 1 to 16.

    Raises:
        ValueError: bits out of range.

    Example:
        >>> quantise(torch.tensor([-1.0, -0.2, 0.1, 0.6, 5.0]), torch.tensor(1.0), bits=2)
        tensor([-1.0000, -0.3333,  0.0000,  0.6667,  1.0000])
    """
    check_bits("bits", bits)
    return _StraightThrough.apply(x, full_range, 2**bits - 1)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, full_range: Tensor, largest_level: int) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)  # float16 has no small steps
        step = (full_range.to(wide) / largest_level).clamp_min(torch.finfo(wide).tiny)
        return (x.to(wide) / step).round_().clamp_(-largest_level, largest_level).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class OutputQuantiser(nn.Module):
    """Quantises the outputs of layers while it is attached; the layers are left without hooks.

    A layer's range is a moving average over batches, updated in training mode and fixed in eval mode; NaN until
    there was any output. In a batch it is `gaussian_clip` times the outputs' root mean square, at most their
    largest absolute value: with few bits, a range that reached to the rarest output would leave hardly a level
    to the others.

    Args:
        layers: the layers, each with one range however often it runs.
        bits: N, see `quantise`.
    """

    def __init__(self, layers: Sequence[nn.Module], bits: int) -> None:
        super().__init__()
        check_bits("bits", bits)
        self._layers, self.bits = tuple(layers), bits
        self._known: set[int] = set()
        self.ranges: Tensor
        self.register_buffer("ranges", torch.full((len(self._layers),), torch.nan))

    def forget(self) -> None:
        """Make all ranges unknown."""
        self.ranges.fill_(torch.nan)
        self._known.clear()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known.clear()

    @contextmanager
    def attached(self) -> Iterator[None]:
        hooks = [layer.register_forward_hook(partial(self._hook, i)) for i, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def quantised(self) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """For each layer what quantises its output in eval mode."""
        return {
            layer: partial(quantise, full_range=self.ranges[index], bits=self.bits)
            for index, layer in enumerate(self._layers)
        }

    def _hook(self, index: int, layer: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns its weights too
            return (self._hook(index, layer, inputs, output[0]), *output[1:])
        if self.training:
            now, old = self._range_of(output.detach()), self.ranges[index]
            average = RANGE_DECAY * old + (1 - RANGE_DECAY) * now
            self.ranges[index] = torch.where(old.isnan(), now, average)
        elif index not in self._known:  # asked once, since asking waits for the device
            if bool(self.ranges[index].isnan()):
                raise RuntimeError("the output ranges are not known: train, or call crossbar.calibrate(loader)")
            self._known.add(index)
        return quantise(output, self.ranges[index], self.bits)

    def _range_of(self, output: Tensor) -> Tensor:
        root_mean_square = output.float().square().mean().sqrt()
        return torch.minimum(gaussian_clip(self.bits) * root_mean_square, output.abs().amax())


@cache
def gaussian_clip(bits: int) -> float:
    """The range, in standard deviations, with the least mean square error of quantising a Gaussian.

    Clamping to a costs 2 ((1 + a^2) Q(a) - a phi(a)), with phi and Q the standard normal density and tail, and
    rounding with a step of a / (2^bits - 1) costs step^2 / 12 (Banner et al., NeurIPS 2019).

    Example:
        >>> gaussian_clip(4), gaussian_clip(8)
        (2.9, 4.21)
    """

    def error(a: float) -> float:
        tail, density = math.erfc(a / math.sqrt(2)) / 2, math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        return 2 * ((1 + a * a) * tail - a * density) + (a / (2**bits - 1)) ** 2 / 12

    return min((hundredths / 100 for hundredths in range(50, 1000)), key=error)


def check_bits(name: str, bits: int | None) -> None:
    """None or a whole number 1..16 is fine.

    Raises:
        ValueError: anything else.
    """
    if bits is not None:
        whole(name, bits, least=1, most=16, also="or null for no quantisation")
