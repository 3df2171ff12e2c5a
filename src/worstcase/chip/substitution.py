"""How a chip's tensors take the place of the network's own during a pass.

A layer that multiplies with its parameter as it is gets the chip's tensor in the parameter's place, by
`torch.func.functional_call`. In a layer that first computes what it multiplies with, the tensor is changed in that
call, by a mode that sees the calls of the layer's forward. So nothing is written to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from worstcase.batches import Inputs
from worstcase.chip.modes import evaluating
from worstcase.chip.products import Call, Place, Products

Change = Callable[[Tensor], Tensor]


@contextmanager
def changed(changes: Iterable[tuple[nn.Module, Place, Change]]) -> Iterator[None]:
    """Within the block layers multiply with what a function makes of the tensor at a place of theirs."""
    with ExitStack() as stack:
        for layer, place, change in changes:
            stack.enter_context(_run_within(layer, _Changed(place, change)))
        yield


def run(net: nn.Module, tensors: dict[str, Tensor], inputs: Inputs) -> Any:
    """Run a network with other tensors in place of its parameters and buffers, by name.

    Nothing is computed twice for the backward pass (`torch.utils.checkpoint`): it would be with the network's own.
    A backward pass can follow in eval mode too, see `_without_cudnn`.
    """

    def with_tensors(*args: Any, **kwargs: Any) -> Any:
        return functional_call(net, tensors, args, kwargs, tie_weights=False)

    with _without_checkpointing(), _without_cudnn(net), _without_fast_path(), parameters_by_name():
        return call(with_tensors, inputs)


def call(net: Callable[..., Any], inputs: Inputs) -> Any:
    """What a network gives, of its arguments in a tuple or a dict, or of one."""
    if isinstance(inputs, dict):
        return net(**inputs)
    return net(*inputs) if isinstance(inputs, tuple) else net(inputs)


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    def once(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    instead: dict[str, Any] = {
        "CheckpointFunction": SimpleNamespace(apply=lambda function, preserve, *args: function(*args)),
        "_checkpoint_without_reentrant_generator": once,
        "_checkpoint_without_reentrant_generator_impl": once,  # of newer releases
    }
    module = vars(torch.utils.checkpoint)
    own = {name: module[name] for name in instead if name in module}
    module.update({name: instead[name] for name in own})
    try:
        yield
    finally:
        module.update(own)


@contextmanager
def _without_cudnn(net: nn.Module) -> Iterator[None]:
    """Recurrent layers in eval mode run without cuDNN where gradients are asked for: its own have none there."""
    with ExitStack() as stack:
        for layer in net.modules() if torch.is_grad_enabled() else ():
            if isinstance(layer, nn.RNNBase) and not layer.training:
                stack.enter_context(_run_within(layer, _WithoutCudnn()))
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Transformers run layer by layer: without gradients PyTorch would pass by their layers."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def parameters_by_name() -> Iterator[None]:
    """Within the block `get_parameter` gives what is in a parameter's place too."""

    def get(module: nn.Module, target: str) -> Any:
        path, _, name = target.rpartition(".")
        return getattr(module.get_submodule(path), name)

    before = nn.Module.get_parameter
    nn.Module.get_parameter = get  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.get_parameter = before  # type: ignore[method-assign]


class _WithoutCudnn:
    """Within the block nothing is computed by cuDNN; `torch.backends.cudnn.flags` would set more."""

    def __enter__(self) -> None:
        self._before = torch.backends.cudnn.enabled
        torch.backends.cudnn.enabled = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cudnn.enabled = self._before


def used_at(place: Place, layer: nn.Module) -> Tensor:
    """The tensor that a layer multiplies with at a place, differentiable in its parameters."""
    calls: list[Call] = []
    with Products(calls.append):
        run_alone(layer, {}, smallest_input(layer))
    return next(call.operands[place.argument] for call in calls if place in call)


def run_alone(layer: nn.Module, parameters: Mapping[str, Tensor], zeros: Tensor) -> None:
    """Run a layer in eval mode, with copies of its buffers; it is left as it was."""
    buffers = {key: b.clone() for key, b in layer.named_buffers()}
    attributes = dict(vars(layer))
    try:
        with evaluating(layer):
            functional_call(layer, {**parameters, **buffers}, (zeros.clone(),), tie_weights=False)
    finally:
        for key in [key for key in vars(layer) if key not in attributes]:
            del vars(layer)[key]
        vars(layer).update(attributes)  # hooks of the older kind leave what they computed


def smallest_input(layer: nn.Module) -> Tensor:
    """The smallest input that a layer takes."""
    like = next(layer.parameters()).detach()
    if isinstance(layer, nn.modules.conv._ConvNd):
        size = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return like.new_zeros(1, layer.in_channels, *size)
    if isinstance(layer, nn.Linear):
        return like.new_zeros(1, layer.in_features)
    raise TypeError(f"a {type(layer).__name__} takes more than one input")


class _Changed(TorchFunctionMode):
    """Changes the tensor at a place."""

    def __init__(self, place: Place, change: Change) -> None:
        super().__init__()
        self.place, self.change = place, change

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") == self.place.function:
            args, kwargs = list(args), dict(kwargs)
            holder: Any = kwargs if isinstance(self.place.argument, str) else args
            holder[self.place.argument] = self.change(holder[self.place.argument])
        return function(*args, **kwargs)


@contextmanager
def _run_within(layer: nn.Module, mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Within the block the layer's forward runs in a mode."""
    forward, own = layer.forward, vars(layer).get("forward")

    def within(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return forward(*args, **kwargs)

    layer.forward = within
    try:
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own
