"""A linear network of two classes and one sample, whose worst chip is known."""

import torch
from torch import Tensor, nn


def two_classes(seed: int) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A layer without a bias, a sample (1, 6), its logits (1, 2), and the answer (1,), which is the label."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(6, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 6, generator=generator))
    x = torch.randn(1, 6, generator=generator)
    logits = layer(x).detach()
    return layer, x, logits, logits.argmax(1)
