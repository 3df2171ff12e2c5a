"""The matrix products of a pass, and which parameters their operands come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from worstcase.task import tensors_in

FIXED = frozenset(["linear", *(f"{conv}{n}d" for conv in ("conv", "conv_transpose") for n in (1, 2, 3))])
"""Functions whose second operand is the weight, wherever it comes from."""
_FUNCTIONS = FIXED | {
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "addmm", "addbmm", "baddbmm", "addmv"),
    *("einsum", "tensordot", "inner", "multi_dot", "bilinear", "grouped_mm", "_grouped_mm"),
    "multi_head_attention_forward",
    *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
}
_REARRANGES = {  # nodes of autograd's graph that leave the values as they are
    f"{name}Backward"
    for name in (
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Reshape", "Expand", "AsStrided"),
        *("Squeeze", "Unsqueeze", "Slice", "Select", "Split", "SplitWithSizes", "UnsafeSplit", "Chunk", "Unbind"),
        *("Narrow", "Cat", "Stack", "Clone", "Alias", "ToCopy", "Index", "IndexSelect", "Movedim"),
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
        every: if given, the tensors that any function took, and those that it gave.
    """

    def __init__(
        self, show: Callable[[Call], Any], every: Callable[[list[Tensor], list[Tensor]], None] | None = None
    ) -> None:
        super().__init__()
        self.show, self.every = show, every

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        if self.every:
            self.every(tensors_in([args, kwargs]), tensors_in(result))
        if name in _FUNCTIONS:
            operands: dict[int | str, Tensor] = {}
            for place, argument in (*enumerate(args), *kwargs.items()):
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

    Args:
        leaves: by name, each requires a gradient.
        data: the inputs.
    """

    def __init__(self, leaves: Mapping[str, Tensor], data: list[Tensor]) -> None:
        self._leaves = {id(leaf): Origin(frozenset([name])) for name, leaf in leaves.items()}
        self._data = {id(t): t for t in data}  # and what no gradient leads through that was computed from them
        self._known: dict[Any, Origin] = {}
        self._kept = leaves  # so that their ids stay theirs

    def follow(self, taken: list[Tensor], given: list[Tensor]) -> None:
        """See that numbers without a gradient, such as one-hot tokens, are data if they come from data."""
        if any(id(t) in self._data for t in taken):
            self._data |= {id(t): t for t in given if not t.requires_grad}

    def meet(self, call: Call) -> dict[int | str, Origin]:
        """Where the operands of a product come from; none if it is one of parameters alone, such as of an adapter.

        What is computed from its results is data. A layer's input is data, even if it is a constant.
        """
        origins = {place: self._of(operand) for place, operand in call.operands.items()}
        if call.name not in FIXED and not any(origin.is_data for origin in origins.values()):
            return {}
        before = {t.grad_fn for t in call.operands.values()}
        waiting = [t.grad_fn for t in call.results]
        while waiting:  # all nodes of the call, as work in place on its result forgets the last one
            node = waiting.pop()
            if node is not None and node not in before and not hasattr(node, "variable"):
                if node not in self._known:
                    waiting += [next_ for next_, _ in node.next_functions]
                self._known[node] = Origin(is_data=True)
        self._data |= {id(t): t for t in call.results if t.grad_fn is None}
        return origins

    def _of(self, tensor: Tensor) -> Origin:
        if tensor.grad_fn is not None:
            return self._trace(tensor.grad_fn)
        return Origin(is_data=True) if id(tensor) in self._data else self._leaves.get(id(tensor), Origin())

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
            return Origin(is_data=True) if id(leaf) in self._data else self._leaves.get(id(leaf), Origin())
        kind = node.name().rstrip("0123456789")
        origin = Origin(is_itself=kind in _REARRANGES, is_data=kind == "EmbeddingBackward")
        for one in before:
            origin |= self._known[one]
        return origin
