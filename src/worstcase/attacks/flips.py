"""Single weights moved one by one, for networks of a few weights."""

from __future__ import annotations

from itertools import product

import torch

from worstcase.attacks.search import Search

WEIGHTS = 50  # of a network at most


def flip_weights(run: Search, passes: float, generator: torch.Generator) -> None:
    """Move single weights to the other end of the box while that does not raise the accuracy.

    After a round over all weights that lowers nothing, it goes on from a random vertex.

    Args:
        run: the search, whose worst is where this begins.
        passes: that the search may have made at the end, at most.
        generator: draws.
    """
    current = {name: d.clone() for name, d in run.worst.items()}
    accuracy = run.worst_accuracy
    places = [(name, index) for name, d in current.items() for index in product(*map(range, d.shape))]
    while True:
        before = accuracy
        for place in torch.randperm(len(places), generator=generator, device=run.device).tolist():
            if run.worst_accuracy == 0 or run.passes + 1 > passes:
                return
            name, index = places[place]
            d = current[name]
            old = d[index].clone()
            low, high = (end[name].expand_as(d)[index] for end in (run.box.low, run.box.high))
            d[index] = low if old - low > high - old else high
            found = run.score(current, member="flips")
            if found > accuracy:
                d[index] = old
            else:
                accuracy = found
        if accuracy == before and run.passes + 1 <= passes:
            current = run.box.sample("vertex", generator)
            accuracy = run.score(current, member="flips")
