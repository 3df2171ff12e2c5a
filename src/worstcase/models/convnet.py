"""ConvNet for 32x32 colour images."""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """The paper's ConvNet: three pairs of 3x3 convolutions (64, 128, 256), then 4096-1024-1024; no batch norm.

    Weights are initialised for ReLU as in He et al. (2015). With PyTorch's default, signals shrink from layer to
    layer, and 4-bit outputs then hold little more than the biases.

    Args:
        num_classes: number of outputs.
        width: scales all hidden sizes, above 0; the paper's network has 1.

    Example:
        >>> import torch
        >>> ConvNet(width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled((64, 128, 256), width)
        (hidden,) = scaled((1024,), width)
        layers: list[nn.Module] = []
        before = 3
        for after in channels:
            for inputs in (before, after):
                layers += [nn.Conv2d(inputs, after, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * 4 * 4, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def scaled(sizes: tuple[int, ...], width: float) -> tuple[int, ...]:
    """Layer sizes multiplied by `width`, each at least 1."""
    if not 0 < width < float("inf"):
        raise ValueError(f"width={width}: must be above 0")
    return tuple(max(1, round(size * width)) for size in sizes)
