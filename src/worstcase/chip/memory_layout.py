"""The order in memory of images, in which a network computes fastest."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

from worstcase.batches import Inputs
from worstcase.chip import float32
from worstcase.chip.manners import same_answers
from worstcase.chip.modes import evaluating
from worstcase.chip.substitution import run


class MemoryLayout:
    """Lays images out as the network computes fastest: channels_last where that is quicker and it can compute so.

    It is on a CPU, where it takes 0.55 to 0.85 of the time, and on a GPU's tensor cores. What the network can is
    tried with the first images on each.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self._can: dict[str, bool] = {}  # by type of device, once it is tried

    def __call__(self, x: Inputs) -> Inputs:
        """The images in that order; as they are if they are so already, or no images."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not channels_last_is_quicker(x.device.type, x.dtype):
            return x
        if x.device.type not in self._can:
            self._can[x.device.type] = takes_channels_last(self._net, x)
        if not self._can[x.device.type]:
            return x.contiguous()
        # contiguous() would leave images of one channel as they are
        return x if x.stride(1) == 1 else x.clone(memory_format=torch.channels_last)


def channels_last_is_quicker(device: str, dtype: torch.dtype) -> bool:
    """Whether convolutions are quicker in channels_last: on a CPU, and on CUDA where tensor cores compute them.

    Example:
        >>> channels_last_is_quicker("cuda", torch.bfloat16), channels_last_is_quicker("cuda", torch.float64)
        (True, False)
    """
    if device == "cuda" and dtype == torch.float32:
        return torch.is_autocast_enabled("cuda") or "tf32" in float32.of_cudnn()
    return device == "cpu" or (device == "cuda" and dtype in (torch.bfloat16, torch.float16))


@torch.no_grad()
def takes_channels_last(net: nn.Module, x: Tensor) -> bool:
    """Whether a network computes the same with images in channels_last; it is left as it was."""
    if x.device.type == "cpu" and any(_corrupts_memory(module) for module in net.modules()):
        return False
    with suppress(Exception):  # what it keeps of a pass is kept in a copy, where one can be made
        net = copy.deepcopy(net, {id(p): p for p in net.parameters()})
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with evaluating(net):
        try:
            there, here = (
                run(net, {name: b.clone() for name, b in net.named_buffers()}, images)
                for images in (x[:2].clone(memory_format=torch.channels_last), x[:2].clone())
            )
            return same_answers(there, here, tensors)  # not so of x.as_strided(...)
        except RuntimeError:  # such as of x.view(len(x), -1)
            return False
        finally:
            torch.clear_autocast_cache()  # PyTorch 2.6 would use casts made without gradients again


def _corrupts_memory(module: nn.Module) -> bool:
    """A convolution whose gradient oneDNN writes past its workspace in channels_last (its issue 6035)."""
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < 16
    )
