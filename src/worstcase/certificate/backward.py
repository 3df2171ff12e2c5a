"""Linear bounds of a whole network: from a sum back to the data, over weights and activations at once.

Zhang et al. (NeurIPS 2018, arXiv 1811.00866: CROWN) bound networks so for inputs that deviate; here weights do. A
sum over a layer's outputs is at least a sum over its inputs, and so back to the data. What deviates in a layer
costs

- after a ReLU, where the inputs h are not negative, |A| b h: linear in h, so that nothing is lost;
- in a convolution b |sum over positions of A h|, because all positions share the weights: the absolute value is
  bounded by its chord, which is exact where its sign is certain. So each sum meets its own worst kernel.

**Floating point.** The bounds are computed in float64. What the network rounds is an error of each layer's output,
at most `slack` times the sum of the absolute products. That counts the longer of the layer's sums forth and back,
and twice, so that it covers this layer's arithmetic in float64 too. All else that is added up is taken to be wrong
by 2^-32 of the sum of its absolute values, which is enough for a million terms.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from worstcase.certificate.in_place import name_of
from worstcase.certificate.linear_parts import LinearParts
from worstcase.certificate.linear_rules import Sum
from worstcase.certificate.products import Interval, Unsupported
from worstcase.certificate.tracing import first_line

MEMORY = 2**25  # bytes that the widest layer may take at a time


class BackwardBounds(LinearParts):
    """Interval bounds of a batch that are kept, and linear bounds of sums over any part's outputs.

    Raises:
        Unsupported: see `LinearParts`.
    """

    def run(self, *inputs: Any, **options: Any) -> Any:
        self._samples_now = len(inputs[0].low)
        return super().run(*inputs, **options)

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if isinstance(y, Interval) and n in self._of_data and y.low.shape[:1] != (self._samples_now,):
            raise Unsupported(f"{name_of(n.target)}, after which samples do not come first, by linear bounds")
        return y

    def _opened(self, samples: Tensor) -> None:
        """Bound sums for these samples of the last run from now on."""
        self._open = samples
        self._rules.clear()

    def _lower(self, node: fx.Node, coefficients: Tensor, rows: Tensor) -> Tensor:
        """The least value of sums over a part's outputs on any chip: (M,).

        Args:
            node: the part.
            coefficients: of its outputs, (M, ...).
            rows: which of the samples that are open each sum is for, (M,).
        """
        total = Sum(coefficients)
        pending = {node: coefficients}
        for n in reversed(self._nodes):
            if n not in pending:
                continue
            try:
                if n not in self._rules:
                    self._rules[n] = self._rule(n)
                rule, sources = self._rules[n]
                a = rule(pending.pop(n), rows, total)
            except Unsupported:
                raise
            except (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError) as error:
                raise Unsupported(f"{name_of(n.target)} by linear bounds: {first_line(error)}") from error
            for source, back in sources:
                pending[source] = pending[source] + back(a) if source in pending else back(a)
        return total.bound

    def _parts(self, sums: int) -> tuple[Tensor, ...]:
        """The numbers of so many sums in parts that fit into the memory."""
        at_once = self._at_once()
        return torch.arange(sums, device=self._open.device).split(at_once) if sums else ()

    def _at_once(self) -> int:
        """How many sums fit into the memory."""
        widest = 1
        for n in self._of_data:
            y, (layer, weight, _) = self.env[n], self._layer(n)
            if not isinstance(y, Interval):
                continue
            values = math.prod(y.low.shape[1:])
            widest = max(widest, 8 * values)
            if layer is not None and y.low.ndim > 2:
                kernel, outputs = weight.low.numel(), len(weight.low)
                patches = kernel * getattr(layer, "groups", 1) * values // outputs**2
                widest = max(widest, 4 * patches + 6 * kernel)
        return max(1, MEMORY // (8 * widest))
