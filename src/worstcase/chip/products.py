"""The matrix products of a pass, and which parameters their operands come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from worstcase.batches import tensors_in

FIXED = frozenset(["linear", *(f"{conv}{n}d" for conv in ("conv", "conv_transpose") for n in (1, 2, 3))])
"""Functions whose second operand is the weight, wherever it comes from."""
_STATES = {"rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell", "rnn_relu_cell", "lstm_cell", "gru_cell"}
INPUTS = {
    *((name, place) for name in FIXED for place in (0, "input")),
    *((name, place) for name in _STATES for place in (0, 1, "1[0]", "1[1]")),
    *(("multi_head_attention_forward", place) for place in (0, 1, 2, 7, 8)),
}
"""The places of what goes in, learnt or not: inputs, states, queries, keys and values, and a few more."""
_FUNCTIONS = FIXED | {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "addmm", "addbmm", "baddbmm", "addmv"),
    *("einsum", "tensordot", "inner", "multi_dot", "bilinear", "grouped_mm", "_grouped_mm"),
    *("linalg_matmul", "linalg_multi_dot", "addmm_", "addbmm_", "baddbmm_", "addmv_", "cdist"),
    *("linalg_vecdot", "vdot", "chain_matmul", "addr", "addr_", "outer", "ger", "kron", "_sparse_mm", "smm"),
    *("conv_tbc", "convolution", "deform_conv2d", "cosine_similarity", "pairwise_distance"),
    *("multi_head_attention_forward", "scaled_dot_product_attention"),
    *_STATES,
}
_ADDED = {
    *(("scaled_dot_product_attention", place) for place in (3, "attn_mask")),
    *(("multi_head_attention_forward", place) for place in ("attn_mask", "key_padding_mask")),
    *((name, place) for name in ("addmm", "addbmm", "baddbmm", "addmv") for place in (0, "input")),
}
"""Arguments that meet no input in a product."""
_PRODUCTS = {f"{name}Backward" for name in ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv", "Addmv", "Dot", "Convolution")}
"""Nodes of autograd's graph."""
_REARRANGES = {  # nodes of autograd's graph that leave the values as they are
    f"{name}Backward"
    for name in (
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Reshape", "Expand", "AsStrided"),
        *("Squeeze", "Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Chunk", "Unbind"),
        *("Narrow", "Cat", "Stack", "Clone", "Alias", "ToCopy", "Index", "IndexSelect", "Movedim"),
        "ViewAsComplex",
    )
}


class Place(NamedTuple):
    """An operand of a function."""

    function: str
    argument: int | str


@dataclass(frozen=True)
class Call:
    """A matrix product that ran."""

    name: str
    operands: dict[int | str, Tensor]
    """By place among the arguments; those in a list, such as an LSTM's, by names of their own."""
    results: list[Tensor]

    def __contains__(self, place: Place) -> bool:
        return place.function == self.name and place.argument in self.operands


class Products(TorchFunctionMode):
    """Shows every matrix product that Python code asks for.

    Args:
        show: a product.
        every: if given, any function, the tensors that it took, and those that it gave.
    """

    def __init__(
        self, show: Callable[[Call], Any], every: Callable[[Any, list[Tensor], list[Tensor]], None] | None = None
    ) -> None:
        super().__init__()
        self.show, self.every = show, every

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if self.every:
            self.every(function, tensors_in([args, kwargs]), tensors_in(result))
        if name in _FUNCTIONS:
            operands: dict[int | str, Tensor] = {}
            for place, argument in (*enumerate(args), *kwargs.items()):
                if (name, place) in _ADDED:
                    continue
                if isinstance(argument, Tensor):
                    operands[place] = argument
                else:
                    operands |= {f"{place}[{i}]": t for i, t in enumerate(tensors_in(argument))}
            self.show(Call(name, operands, tensors_in(result)))
        return result


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from, looking back as far as matrix products."""

    names: frozenset[str] = frozenset()
    """Of leaves."""
    is_itself: bool = True
    """The leaves' values are as they were, but for their order."""
    is_data: bool = False
    """An input or a product's result is there too."""

    def __or__(self, other: Origin) -> Origin:
        return Origin(self.names | other.names, self.is_itself and other.is_itself, self.is_data or other.is_data)


class Sources:
    """Traces tensors back to named leaves, by autograd's graph.

    A tensor that comes neither from them nor from the pass is named by its shape.

    Args:
        leaves: by name; parameters require a gradient, buffers do not.
        data: the inputs.
        strays: what must not be met in the leaves' place, by their names.
        chips: what was put in the place of what a layer computed.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        data: list[Tensor],
        strays: Iterable[tuple[str, Tensor]] = (),
        chips: Iterable[Tensor] = (),
    ) -> None:
        self._ends = {id(leaf): Origin(frozenset([name])) for name, leaf in leaves.items()}
        self._ends |= {id(t): Origin(is_data=True) for t in data}  # and all else that no gradient leads through
        self._known: dict[Any, Origin] = {}
        self._met: set[str] = set()
        self.changed: set[str] = set()
        """Leaves that meet data in another form, also in no product."""
        self.unseen: list[Origin] = []
        """What meets data in a product that Python code did not ask for: in scripted code, or in an operation with
        a backward pass of its own."""
        self._ends |= {id(t): Origin(frozenset([name]), is_itself=False) for name, t in strays}
        self._ends |= {id(t): Origin() for t in chips}
        dense = {name: t for name, t in leaves.items() if t.requires_grad and t.layout == torch.strided}
        self._memories = {_memory(t): (name, t._version) for name, t in dense.items()}
        self.written: set[str] = set()
        """Leaves that require a gradient, and that something wrote to, by their `data` too."""
        self._kept = [*leaves.values(), *data]  # so that their ids stay theirs

    def follow(self, function: Any, taken: list[Tensor], given: list[Tensor]) -> None:
        """See where numbers without a gradient come from, such as one-hot tokens, or a sign under no_grad."""
        if function == Tensor.data.__set__:  # type: ignore[attr-defined]
            self.written |= self._of(taken[0]).names
        for t in (*taken, *given):
            if not t.is_inference() and t._version and t.numel() and (memory := _memory(t)) in self._memories:
                name, before = self._memories[memory]
                self.written |= {name} if t._version > before else set()
        given = [t for t in given if t.grad_fn is None and not (t.requires_grad and id(t) in self._ends)]
        origin = Origin()
        for t in taken if given else ():
            origin |= self._of(t)
        for t in given:
            same = origin.is_itself and any(_share_memory(t, one) for one in taken)
            self._end(t, replace(origin, is_itself=same))

    def meet(self, call: Call) -> dict[int | str, Origin]:
        """Where the operands of a product come from; none if it is one of parameters alone, such as of an adapter.

        What is computed from its results is data. A layer's input is data, even if it is a constant.
        """
        origins = {place: self._of(operand) for place, operand in call.operands.items()}
        if call.name == "cosine_similarity":  # which normalises both
            origins = {place: replace(origin, is_itself=False) for place, origin in origins.items()}
        if call.name not in FIXED and not any(origin.is_data for origin in origins.values()):
            return {}
        self._met |= {n for one in origins.values() if one.is_itself and not one.is_data for n in one.names}
        before = {t.grad_fn for t in call.operands.values()}
        waiting = [t.grad_fn for t in call.results]
        while waiting:  # all nodes of the call, as work in place on its result forgets the last one
            node = waiting.pop()
            if node is not None and node not in before and not hasattr(node, "variable"):
                if node not in self._known:
                    waiting += [next_ for next_, _ in node.next_functions]
                self._known[node] = Origin(is_data=True)
        for t in call.results:
            if t.grad_fn is None:
                self._end(t, Origin(is_data=True))
        return origins

    def look_back(self, results: list[Tensor]) -> None:
        """Trace some results, so that `changed` and `unseen` know of all that is on the way to them."""
        for t in results:
            self._of(t)

    def _end(self, tensor: Tensor, origin: Origin) -> None:
        self._ends[id(tensor)] = origin
        self._kept.append(tensor)

    def _of(self, tensor: Tensor) -> Origin:
        return self._end_at(tensor) if tensor.grad_fn is None else self._trace(tensor.grad_fn)

    def _end_at(self, tensor: Tensor) -> Origin:
        if id(tensor) not in self._ends:
            self._end(tensor, Origin(frozenset([f"a tensor of shape {tuple(tensor.shape)}"])))
        return self._ends[id(tensor)]

    def _trace(self, node: Any) -> Origin:
        waiting = [node]
        while waiting:
            top = waiting[-1]
            before = [next_ for next_, _ in top.next_functions if next_ is not None]
            if top not in self._known and (unknown := [n for n in before if n not in self._known]):
                waiting += unknown
                continue
            waiting.pop()
            if top not in self._known:
                self._known[top] = self._combined(top, before)
        return self._known[node]

    def _combined(self, node: Any, before: list[Any]) -> Origin:
        if (leaf := getattr(node, "variable", None)) is not None:
            return self._end_at(leaf)
        kind = node.name().rstrip("0123456789")
        origin = Origin(
            is_itself=kind in _REARRANGES and not _rounds(node, before),
            is_data=kind in ("EmbeddingBackward", "EmbeddingBagBackward"),
        )
        origins = [self._known[one] for one in before]
        if any(one.is_data for one in origins):
            if kind in _PRODUCTS:
                self.unseen += [one for one in origins if not one.is_data]
                return Origin(is_data=True)
            if hasattr(node, "_forward_cls"):  # of an autograd.Function, whose own products were seen
                origins = [replace(one, names=one.names - self._met) for one in origins]
                self.unseen += [replace(one, is_itself=False) for one in origins if not one.is_data]
            self.changed |= {n for one in origins if not (one.is_data or one.is_itself) for n in one.names}
        for one in origins:
            origin |= one
        return origin


def _rounds(node: Any, before: list[Any]) -> bool:
    """Whether it casts to fewer digits."""
    dtypes = [one._input_metadata[0].dtype for one in (node, *before)]
    eps = [torch.finfo(dtype).eps if dtype.is_floating_point else 0 for dtype in dtypes]
    return any(eps[0] > one for one in eps[1:])


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return (memory := _memory(a)) is not None and memory == _memory(b)


def _memory(t: Tensor) -> int | None:
    """Where a dense tensor's numbers begin, with those before its own."""
    if t.layout != torch.strided:
        return None
    try:
        return t.untyped_storage().data_ptr()
    except NotImplementedError:  # one of torch.vmap's has no memory of its own
        return None
