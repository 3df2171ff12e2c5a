"""Interval bounds of recurrent layers: an RNN, an LSTM or a GRU, step by step.

The same weights meet the state at each step, but intervals let them deviate at each step anew, so that they widen
from step to step. Sums are rounded as `worstcase.certificate.products` tells; a kernel may fuse products and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worstcase.certificate.products import Interval, Unsupported, Weight, affine, slack
from worstcase.certificate.rules import FEW, added, corners, monotone, positive, smooth, smooth_positive

State = tuple[Interval, Interval]
"""Of a step: what it gives, and an LSTM's memory."""


def recurrent(
    layer: nn.RNNBase, x: Interval, value: Callable[[Tensor], Interval | Tensor]
) -> tuple[Interval, Any]:
    """What a layer that begins with a state of zeros gives: its outputs, and its last state.

    Args:
        layer: of one or several levels, one way or both.
        x: (N, T, inputs) or (T, N, inputs), as the layer takes them.
        value: the box of a parameter, or the parameter where it is exact.
    """
    if x.low.ndim != 3:
        raise Unsupported("a recurrent layer of one sequence without a batch")
    if layer.batch_first:
        x = _turned(x)
    last = []
    for level in range(layer.num_layers):
        ways = []
        for way in ("", "_reverse")[: 1 + layer.bidirectional]:
            outputs, state = _one_way(layer, x, f"l{level}{way}", value, backwards=bool(way))
            ways.append(outputs)
            last.append(state)
        x = monotone(torch.cat, ways, -1)
    h, c = (monotone(torch.stack, [state[i] for state in last]) for i in (0, 1))
    return _turned(x) if layer.batch_first else x, (h, c) if isinstance(layer, nn.LSTM) else h


def _one_way(
    layer: nn.RNNBase, x: Interval, name: str, value: Callable[[Tensor], Any], *, backwards: bool
) -> tuple[Interval, State]:
    def weight(of: str, terms: int) -> Weight:
        bias = getattr(layer, f"bias_{of}_{name}", None)
        box = Interval.of(value(getattr(layer, f"weight_{of}_{name}")))
        return Weight(box, None if bias is None else Interval.of(value(bias)), terms)

    size = layer.proj_size or layer.hidden_size
    terms = x.low.shape[-1] + size  # of a whole sum of inputs and state, in any order
    inputs = affine(F.linear, x, weight("ih", terms))
    of_state = weight("hh", terms)
    project = weight("hr", layer.hidden_size) if layer.proj_size else None
    state: State = _zeros(x, size), _zeros(x, layer.hidden_size)
    steps = range(len(x.low))
    outputs = []
    for step in reversed(steps) if backwards else steps:
        state = STEPS[type(layer)](
            layer, monotone(lambda t, at: t[at], inputs, step), affine(F.linear, state[0], of_state), *state
        )
        if project:
            state = affine(F.linear, state[0], project), state[1]
        outputs.append(state[0])
    return monotone(torch.stack, outputs[::-1] if backwards else outputs), state


# ---- a step, from what the products with the inputs and the state give


def _rnn(layer: Any, x: Interval, y: Interval, h: Interval, c: Interval) -> State:
    total = added(torch.add, x, y)
    return positive(F.relu, total) if layer.nonlinearity == "relu" else smooth(torch.tanh, total), c


def _lstm(layer: Any, x: Interval, y: Interval, h: Interval, c: Interval) -> State:
    into, keep, new, out = monotone(torch.chunk, added(torch.add, x, y), 4, -1)
    c = _fused(corners(torch.mul, _gate(keep), c), corners(torch.mul, _gate(into), smooth(torch.tanh, new)))
    return corners(torch.mul, _gate(out), smooth(torch.tanh, c)), c


def _gru(layer: Any, x: Interval, y: Interval, h: Interval, c: Interval) -> State:
    (reset, update, new), (of_reset, of_update, of_new) = (monotone(torch.chunk, t, 3, -1) for t in (x, y))
    reset, update = _gate(added(torch.add, reset, of_reset)), _gate(added(torch.add, update, of_update))
    n = smooth(torch.tanh, _fused(new, corners(torch.mul, reset, of_new)))
    ends = [[a + z * (b - a) for z in (update.low, update.high)] for a, b in ((n.low, h.low), (n.high, h.high))]
    mixed = Interval(torch.minimum(*ends[0]), torch.maximum(*ends[1]))  # (1 - update) n + update h
    return mixed.widened(slack(FEW, n.low) * (n.magnitude + h.magnitude)), c


STEPS: dict[type, Callable[..., State]] = {nn.RNN: _rnn, nn.LSTM: _lstm, nn.GRU: _gru}


def _gate(x: Interval) -> Interval:
    y = smooth_positive(torch.sigmoid, x)
    return Interval(y.low, y.high.clamp_max(1), nonnegative=True)


def _fused(x: Interval, y: Interval) -> Interval:
    """The sum of two products, whether each is rounded or not."""
    total = added(torch.add, x, y)
    return total.widened(slack(FEW, total.low) * (x.magnitude + y.magnitude))


def _zeros(x: Interval, size: int) -> Interval:
    return Interval.of(x.low.new_zeros(x.low.shape[1], size))


def _turned(x: Interval) -> Interval:
    return monotone(torch.transpose, x, 0, 1)
