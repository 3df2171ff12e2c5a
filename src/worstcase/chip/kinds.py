"""Kinds of networks whose weights no crossbar holds, each refused with the reason and what to give instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_AROUND = {  # wrappers, and where each keeps the network
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_INTEGERS = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.")
_NOT_PLAIN = ("torchao.", "torch.distributed.")  # homes of tensors that hold integers, or a part of the numbers
_OF_FLOATS = ("FloatFunctional", "FXFloatFunctional")  # which lie there too


def check_kind(net: Any) -> None:
    """Make sure that a network is Python code with real numbers as its weights.

    Raises:
        ValueError: it is not; the message says what to give instead.
    """
    if not isinstance(net, nn.Module):
        raise ValueError(
            f"net must be a torch.nn.Module, not of type {type(net).__name__}: give the module it was made from"
        )
    for name, module in net.named_modules():
        kind, which = type(module).__name__, f"net.{name}".removesuffix(".")
        if inside := _AROUND.get(kind):
            raise ValueError(f"{which} is wrapped by {kind}: give the network inside, {which}.{inside}")
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{which} is scripted or traced, so its code is fixed: give the module before that")
        if any(base.__name__ == "_StatefulGraphModule" for base in type(module).__mro__):
            raise ValueError(f"{which} is an exported program, so its code is fixed: give the module before that")
        if type(module).__module__.startswith(_INTEGERS) and kind not in _OF_FLOATS:
            raise ValueError(
                f"{which}, a {kind}, computes with integers: give the network before it was converted, and "
                "weight_bits= for as many bits"
            )
    for name, parameter in net.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"{name} has no shape yet: run the network on a batch first, net(inputs)")
        if parameter.device.type == "meta":
            raise ValueError(f"{name} is on the meta device, without values: load weights first")
        if parameter.is_complex():
            raise ValueError(
                f"{name} is complex, but devices hold real numbers: give its two parts as two weights"
            )
        whole = not parameter.is_floating_point() and parameter.ndim > 1
        if whole or type(parameter.data).__module__.startswith(_NOT_PLAIN):
            held = str(parameter.dtype) if whole else type(parameter.data).__name__
            raise ValueError(f"{name} is {held}: give the network before it was quantised or sharded")
