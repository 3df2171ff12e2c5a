"""Linear bounds of the margins that intervals leave open."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from worstcase.certificate.backward import BackwardBounds
from worstcase.certificate.products import Interval, margins_of
from worstcase.chip.crossbar import Crossbar
from worstcase.task import logits_of

SUMS = 8  # for a sample on average, to tighten the hidden layers
HOPELESS = 2  # a margin that is as programmed 1 and by linear bounds less than minus so many: left as it is


class LinearBounds(BackwardBounds):
    """The better of interval and linear bounds.

    Linear bounds are asked where intervals leave a margin open, the worst of a decision first. Where that falls
    short, the hidden fully connected layers are bounded so too, unit by unit where a sign is unsure, and what
    follows again.

    Raises:
        Unsupported: see `BackwardBounds`.
    """

    def __init__(self, crossbar: Crossbar) -> None:
        super().__init__(crossbar)
        self._tighter: dict[fx.Node, Interval] = {}  # of a batch, for layers where linear bounds are known
        self._samples = torch.empty(0)  # those of the batch in the last run

    def margins(self, images: Tensor, labels: Tensor) -> Tensor:
        self._tighter.clear()
        least = self._least(images, labels, torch.arange(len(labels), device=labels.device))
        lead = margins_of(logits_of(self._crossbar(images)), labels).amin(1)
        sums = SUMS * len(labels)
        for layer in self._hidden_layers() if self._movable else ():
            worst = least.amin(1)
            samples = torch.nonzero((worst <= 0) & (worst > -HOPELESS * lead)).squeeze(1)
            if not len(samples):
                break
            nearest = (worst[samples] / lead[samples]).argsort(descending=True, stable=True)
            samples, made = self._tighten(layer, images, samples[nearest], sums)
            if not len(samples):
                break
            sums -= made
            least[samples] = torch.maximum(least[samples], self._least(images, labels, samples))
        return least

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if n not in self._tighter:
            return y
        low, high = (end[self._samples] for end in (self._tighter[n].low, self._tighter[n].high))
        return Interval(torch.maximum(y.low, low), torch.minimum(y.high, high), y.nonnegative)

    def _least(self, images: Tensor, labels: Tensor, samples: Tensor) -> Tensor:
        """The margins of some samples of a batch, by intervals or by linear bounds."""
        self._samples, labels = samples, labels[samples]
        least = super().margins(images[samples], labels)
        if not self._movable:
            return least
        self._opened(torch.nonzero(~(least > 0).all(1)).squeeze(1))
        found, labels = least[self._open], labels[self._open]
        rows, hardest = torch.arange(len(found), device=found.device), found.argmin(1)
        self._improve(found, labels, rows, hardest)
        rows = rows[found[rows, hardest] > 0]  # of the others the worst margin stays open
        pairs = torch.nonzero(~(found[rows] > 0))
        self._improve(found, labels, rows[pairs[:, 0]], pairs[:, 1])
        return least.index_copy(0, self._open, found)

    def _hidden_layers(self) -> list[fx.Node]:
        """The fully connected ones, but for the last, and for the first, which intervals bound exactly."""
        return [
            n
            for n in self._nodes
            if n.op == "call_module"
            and n in self._of_data
            and isinstance(self.fetch_attr(str(n.target)), nn.Linear)
            and isinstance(y := self.env[n], Interval)
            and y.low.ndim == 2
            and not Interval.of(self.env[n.args[0]]).is_point
        ]

    def _tighten(self, layer: fx.Node, images: Tensor, samples: Tensor, sums: int) -> tuple[Tensor, int]:
        """Bound a layer's outputs whose sign is unsure, for as many samples as so many sums allow.

        Returns:
            These samples, and the number of sums.
        """
        self._samples = samples
        self.run(Interval.of(self._crossbar.laid_out(images[samples])))
        y: Interval = self.env[layer]
        unsure = (y.low < 0) & (y.high > 0)
        made = 2 * unsure.sum(1).cumsum(0)
        few = made <= sums
        samples, made = samples[few], made[few]
        self._opened(torch.nonzero(few).squeeze(1))
        size = (len(images), y.low.shape[1])
        found = Interval(y.low.new_full(size, -math.inf), y.low.new_full(size, math.inf))
        rows, outputs = torch.nonzero(unsure[few], as_tuple=True)
        unit = torch.eye(size[1], dtype=torch.double, device=rows.device)
        for part in self._parts(len(rows)):
            row, output = rows[part], outputs[part]
            found.low[samples[row], output] = _down(self._lower(layer, unit[output], row), y.low)
            found.high[samples[row], output] = -_down(self._lower(layer, -unit[output], row), y.low)
        self._tighter[layer] = found
        return samples, int(made[-1]) if len(made) else 0

    def _improve(self, least: Tensor, labels: Tensor, rows: Tensor, others: Tensor) -> None:
        """Bound the margins over some outputs anew."""
        (end,) = next(n for n in self._nodes if n.op == "output").all_input_nodes
        unit = torch.eye(least.shape[1], dtype=torch.double, device=least.device)
        for part in self._parts(len(rows)):
            row, other = rows[part], others[part]
            found = _down(self._lower(end, unit[labels[row]] - unit[other], row), least)
            least[row, other] = torch.maximum(least[row, other], found)


def _down(x: Tensor, like: Tensor) -> Tensor:
    """The same or less in another dtype."""
    return torch.nextafter(x.to(like.dtype), like.new_tensor(-math.inf))
