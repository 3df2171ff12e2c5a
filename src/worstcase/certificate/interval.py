"""Interval bounds of a whole network: its graph by torch.fx, and the rule of each part."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules import module as hooks

from worstcase.certificate.in_place import check_in_place, name_of
from worstcase.certificate.products import Interval, Product, Unsupported, Weight, affine, margins, terms
from worstcase.certificate.recurrent import STEPS, recurrent
from worstcase.certificate.rules import batch_norm, monotone, normalised, of_type, scaled
from worstcase.certificate.tables import (
    BATCH_NORMS,
    DROPOUTS,
    FUNCTIONS,
    IN_PLACE,
    LIKE,
    LINEAR,
    LINEAR_FUNCTIONS,
    MATRIX_PRODUCTS,
    METHODS,
    MODULES,
    NORMS,
    QUERIES,
    TRANSPOSED,
    TRANSPOSED_FUNCTIONS,
    TURNED,
)
from worstcase.certificate.tracing import first_line, traced
from worstcase.chip import float32
from worstcase.chip.arrays import own_parameters
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.substitution import run
from worstcase.task import leading, logits_of

IN_CACHE = 2**20  # values of the widest layer that are bounded at a time: memory that is new at each layer is slow
ON_GPU = 2**25  # the same where small parts would keep the device waiting for the host
SAME = 100  # units of the leading outputs' last place by which the same operations may differ
TF32 = 2.0**-8  # of it, where another way to convolve may be taken


@dataclass(frozen=True, eq=False)
class _Product:
    """A linear layer or convolution that was not computed yet: with a margin it is tighter if it is the last."""

    product: Product
    x: Interval
    weight: Weight

    def bounds(self) -> Interval:
        return affine(self.product, self.x, self.weight)


class IntervalBounds(fx.Interpreter):
    """Bounds of what a crossbar's network computes on any chip in its box.

    They are differentiable in its weights, so that training can raise them.

    Raises:
        Unsupported: a part of it has no rule, or it cannot be traced.
    """

    def __init__(self, crossbar: Crossbar) -> None:
        self._crossbar, weights, box = crossbar, crossbar.weights(), crossbar.box
        _check(crossbar.net, weights)
        _check_shared(crossbar.net, crossbar.stand_ins(weights))
        if computed := sorted(box.low.keys() - weights.keys()):
            raise Unsupported(f"{computed[0]}, which its layer computes in each pass")
        graph = traced(crossbar.net, crossbar.stand_ins(weights).keys())
        check_in_place(graph)
        super().__init__(graph)
        self.extra_traceback = False
        self._widest = 1  # values of one sample in a layer, so far
        self.within(box)
        leaves = {self.fetch_attr(n.target) for n in graph.graph.nodes if n.op == "call_module"}
        if not self._quantised.keys() <= leaves:
            raise Unsupported("quantised outputs of a layer that is traced into parts")

    def within(self, box: Box) -> None:
        """Take the weights and the ranges of outputs as and where they are now, and another box of deviations."""
        self._movable = bool(box.movable)
        self._quantised = self._crossbar.outputs.quantised if self._crossbar.outputs else {}
        self._weights: dict[str, Weight] = {}
        self._values: dict[int, Interval] = {}  # of a parameter's id, where a chip computes with something else
        for name, weight in self._crossbar.weights().items():
            low, high = (weight + end[name] if name in end else weight for end in (box.low, box.high))
            self._values[id(self._crossbar.net.get_parameter(name))] = Interval(low, high)

    @torch.no_grad()
    def compare(self, images: Tensor, outputs: Any) -> None:
        """Make sure that the graph computes what the crossbar does as programmed, its outputs of some images.

        Raises:
            Unsupported: it does not.
        """
        crossbar, named = self._crossbar, self.module.named_parameters(remove_duplicate=False)
        own = {name: t.clone() for name, t in (*named, *self.module.named_buffers(remove_duplicate=False))}
        chip = {f"0.{name}": t for name, t in crossbar.stand_ins(crossbar.weights()).items()}
        with crossbar.outputs.attached() if crossbar.outputs else nullcontext():
            ours = run(
                self.module, own | {n: t for n, t in chip.items() if n in own}, crossbar.laid_out(images).clone()
            )
        theirs = logits_of(outputs)  # what is beside them is not proven
        share = SAME * torch.finfo(theirs.dtype).eps + (TF32 if theirs.is_cuda else 0)
        alike = isinstance(ours, Tensor) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if not alike or not torch.allclose(ours, theirs, rtol=share, atol=share * leading(theirs), equal_nan=True):
            raise Unsupported(
                f"{type(crossbar.net).__name__}, which computes something else than torch.fx traces (does it "
                "ask for types, or use autocast?)"
            )

    @property
    def at_once(self) -> int:
        """How many samples are best bounded together, by what was bounded so far."""
        on_cpu = all(value.low.device.type == "cpu" for value in self._values.values())
        return max(1, (IN_CACHE if on_cpu else ON_GPU) // self._widest)

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        """The least lead of the label's output over each other one on any chip: (N, classes).

        Its own is infinite. The answer is right on every chip where all others are above 0.
        """
        if self._movable:
            y = self.run(Interval.of(self._crossbar.laid_out(images)))
        else:  # there is one chip
            y = Interval.of(logits_of(self._crossbar(images)))
        last = y if isinstance(y, _Product) and y.x.low.ndim == y.weight.box.low.ndim == 2 else None
        if last and len(last.weight.box.low) > 1:
            return margins(last.x, last.weight, labels)
        y = y.bounds() if isinstance(y, _Product) else y
        if not isinstance(y, Interval):
            raise Unsupported(f"an output that is a {type(y).__name__}")
        if y.low.ndim != 2 or y.low.shape[1] < 2:
            raise Unsupported(f"outputs of shape {tuple(y.low.shape)}: (N, classes) of two or more are needed")
        column = labels[:, None]
        return (y.low.gather(1, column) - y.high).scatter(1, column, math.inf)

    def run_node(self, n: fx.Node) -> Any:
        try:
            y = super().run_node(n)
            is_last = all(user.op == "output" for user in n.users)
            y = y.bounds() if isinstance(y, _Product) and not is_last else y
            if isinstance(y, Interval):
                self._widest = max(self._widest, y.low.numel() // max(1, len(y.low)))
            return y
        except Unsupported:
            raise
        except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
            raise Unsupported(f"{name_of(n.target)}: {first_line(error)}") from error

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._of(super().get_attr(target, args, kwargs))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        kind, x = type(module), Interval.of(args[0])
        y: Any
        if len(args) > 1 or kwargs:
            raise Unsupported(f"{name_of(target)} ({kind.__name__}) with several arguments")
        if kind in NORMS and any(id(p) in self._values for p in module.parameters(recurse=False)):
            raise Unsupported(f"{name_of(target)} ({kind.__name__}), whose own parameters are in devices")
        if getattr(module, "return_indices", False):
            raise Unsupported(f"{name_of(target)} ({kind.__name__}) with return_indices")
        if kind in LINEAR or kind in TRANSPOSED:
            if target not in self._weights:
                weight = Interval.of(self._of(module.weight))
                bias = None if module.bias is None else Interval.of(self._of(module.bias))
                count = terms(weight.low, transposed=kind in TRANSPOSED)
                self._weights[target] = Weight(weight, bias, count)
            y = _Product(product_of(module), x, self._weights[target])
        elif kind in BATCH_NORMS and module.running_mean is not None and not module.training:
            ones = torch.ones_like(module.running_mean)
            scale, shift = (ones, 0 * ones) if module.weight is None else (module.weight, module.bias)
            y = batch_norm(x, module.running_mean, module.running_var, scale, shift, module.eps)
        elif kind is nn.GroupNorm:
            grouped = monotone(lambda t: t.reshape(len(t), module.num_groups, -1), x)
            y = monotone(lambda t: t.reshape(x.low.shape), normalised(grouped, module.eps))
            ends = [
                p if p is None else p.reshape(-1, *[1] * (x.low.ndim - 2)) for p in (module.weight, module.bias)
            ]
            y = scaled(y, *ends)
        elif kind is nn.LayerNorm:
            flat = monotone(lambda t: t.flatten(-len(module.normalized_shape)), x)
            y = monotone(lambda t: t.reshape(x.low.shape), normalised(flat, module.eps))
            y = scaled(y, module.weight, module.bias)
        elif kind is nn.Embedding and x.is_point and id(module.weight) not in self._values:
            own = module.weight if module.max_norm is None else module.weight.clone()  # which it writes to
            y = Interval.of(functional_call(module, {"weight": own}, (x.low,)))
        elif kind in STEPS:
            y = recurrent(module, x, self._of)
        elif kind in MODULES and not (kind in DROPOUTS and module.training):
            y = MODULES[kind](_not_in_place(module), x)
        else:
            raise _without_rule(f"{name_of(target)} ({kind.__name__})")
        if module in self._quantised:
            first, rest = (y[0], y[1:]) if isinstance(y, tuple) else (y, ())  # as a recurrent layer's
            first = monotone(self._quantised[module], first.bounds() if isinstance(first, _Product) else first)
            y = (first, *rest) if isinstance(y, tuple) else first
        return y

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        if target in LINEAR_FUNCTIONS or target in TRANSPOSED_FUNCTIONS:
            return _function(target, *args, **kwargs)
        if not list(of_type(Interval, [*args, *kwargs.values()])):
            return super().call_function(target, args, kwargs)
        if target is getattr and args[1] in QUERIES:
            return getattr(args[0].low, args[1])
        if target in LIKE:
            return target(args[0].low, *args[1:], **kwargs)
        if target is getattr:
            if args[1] not in TURNED:
                raise _without_rule(f"Tensor.{args[1]}")
            return monotone(getattr, *args)
        target = IN_PLACE.get(target, target)
        if target in MATRIX_PRODUCTS:
            return _matrix_product(*args, **kwargs)
        if kwargs.get("return_indices"):
            raise Unsupported(f"{name_of(target)} with return_indices")
        if kwargs.get("training"):
            raise Unsupported(f"{name_of(target)} in training mode")
        if target not in FUNCTIONS:
            raise _without_rule(name_of(target))
        return FUNCTIONS[target](target, *args, **kwargs)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not list(of_type(Interval, [*args, *kwargs.values()])):
            return super().call_method(target, args, kwargs)
        if target in QUERIES:
            return getattr(args[0].low, target)(*args[1:], **kwargs)
        if target in MATRIX_PRODUCTS:
            return _matrix_product(*args, **kwargs)
        name = {"view": "reshape", "view_as": "reshape_as"}.get(target, target)  # it may not lie so in memory
        name = name.rstrip("_")
        if name not in METHODS:
            raise _without_rule(f"Tensor.{target}")
        return METHODS[name](lambda t, *rest, **options: getattr(t, name)(*rest, **options), *args, **kwargs)

    def _of(self, value: Any) -> Any:
        return self._values.get(id(value), value)


def product_of(layer: nn.Module) -> Product:
    """What a layer computes, of any weight and bias."""

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        return functional_call(layer, values, (x,))

    return product


def _function(f: Any, input: Any, weight: Any, bias: Any = None, *rest: Any, **options: Any) -> _Product:
    weight, bias = Interval.of(weight), None if bias is None else Interval.of(bias)
    count = terms(weight.low, transposed=f in TRANSPOSED_FUNCTIONS)
    return _Product(lambda x, w, b: f(x, w, b, *rest, **options), Interval.of(input), Weight(weight, bias, count))


def _matrix_product(x: Any, other: Any) -> _Product:
    """x @ W of a matrix W."""
    weight = Interval.of(other)
    if weight.low.ndim != 2:
        raise Unsupported(f"matmul by a tensor of {weight.low.ndim} dimensions: 2 are supported")
    return _function(F.linear, x, monotone(Tensor.t, weight))


def _not_in_place(module: nn.Module) -> nn.Module:
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        module.inplace = False  # type: ignore[assignment]
    return module


# ---- what is refused


def _without_rule(name: str) -> Unsupported:
    at_the_end = "softmax" in name.lower()
    return Unsupported(f"{name}{' (at the end, leave it out: the answers stay the same)' if at_the_end else ''}")


def check_provable(inputs: Any, labels: Tensor) -> None:
    """Make sure that there is a rule for batches of this form.

    Raises:
        Unsupported: a sample has several decisions, or several inputs.
    """
    if labels.ndim != 1 or labels.is_floating_point() or not isinstance(inputs, Tensor):
        raise Unsupported("only outputs (N, C) with labels (N,), of one input tensor, can be proven")


def _check(net: nn.Module, weights: Mapping[str, Tensor]) -> None:
    kinds = {str(w.dtype).removeprefix("torch.") for w in weights.values()} - {"float32", "float64"}
    if kinds or torch.is_autocast_enabled(next(net.parameters()).device.type):
        raise Unsupported(f"weights of {', '.join(kinds) or 'autocast'}: float32 or float64 is needed")
    if "bf16" in float32.of_others():
        raise Unsupported("torch.set_float32_matmul_precision('medium') or fp32_precision='bf16': more is needed")
    if hooks._global_forward_hooks or hooks._global_forward_pre_hooks:
        raise Unsupported("hooks on all modules (torch.nn.modules.module.register_module_forward_hook)")
    for name, module in net.named_modules():
        hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        if hooked or "forward" in vars(module):
            which = "a hook" if hooked else "a forward set on it"
            raise Unsupported(f"{name or 'the network'} ({type(module).__name__}) with {which}")
    for name in weights:
        try:
            net.get_parameter(name)
        except AttributeError:
            raise Unsupported(f"{name}, an array that is no parameter") from None


def _check_shared(net: nn.Module, stand_ins: Mapping[str, Tensor]) -> None:
    """The rules know a tensor, and not by which of its names it is used."""
    replaced = {id(net.get_parameter(name)): name for name in stand_ins}
    for name, _, _, tensor in own_parameters(net):
        if id(tensor) in replaced and name not in stand_ins:
            raise Unsupported(f"{name}, which is digital but shares its tensor with {replaced[id(tensor)]}")
