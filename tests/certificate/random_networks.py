"""Random small networks of every layer, function and method that has a rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from networks import Recurrent, used
from torch import Tensor, nn

SIDE = 6
ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Tanh, nn.Hardtanh, nn.Softplus]
ACTIVATIONS += [nn.Softsign, nn.LogSigmoid, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.GELU, nn.SiLU, nn.Mish]
ACTIVATION_FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    *[F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.tanh, F.hardtanh, F.softplus, F.softsign],
    *[F.logsigmoid, F.sigmoid, F.hardsigmoid, F.hardswish, F.gelu, F.silu, F.mish],
    *[torch.relu, torch.tanh, torch.sigmoid],
]


class Applied(nn.Module):
    """A function of the inputs in place of a layer."""

    def __init__(self, name: str, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class Times(nn.Module):
    """A product with a parameter of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Beside(nn.Module):
    """Two ways of what comes in, put together: added, subtracted, multiplied or joined."""

    def __init__(self, first: nn.Module, second: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.first(x), self.second(x))


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)  # older PyTorch traces no cat of what is not unpacked
    return torch.cat([second, first], -1)


JOINS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: x.add(y),
    lambda x, y: torch.cat([x, y], 1),
    lambda x, y: torch.stack([x, y], 1).flatten(1, 2),
]
MIXED: dict[str, Callable[[Tensor], Any]] = {
    "methods": lambda x: x.relu() + x.tanh().mul(x.sigmoid()),
    "moved": lambda x: (x - 0.3) / 0.7 + 0.2,
    "from": lambda x: 1 - x * 0.5,
    "mean": lambda x: x.mean(1, keepdim=True),
    "turned": lambda x: x.transpose(1, -1).contiguous(),
    "halves": halves,
    "sliced": lambda x: x[..., 1:],
    "padded": lambda x: F.pad(x, (1, 0), value=0.5),
    "unbound": lambda x: torch.stack([x.unbind(-1)[0], x.select(-1, 1)], -1).movedim(-1, 1),
    "turned round": lambda x: x.flip(-1).roll(1, -1).swapaxes(1, -1),
    "repeated": lambda x: x.flatten(1).repeat(1, 2).narrow(1, 1, 4),
    "viewed": lambda x: x.view(x.size(0), -1).reshape(x.shape),
}


class Random:
    """Draws networks for inputs of shape (channels, 6), (channels, 6, 6) or (channels, 4, 4, 4)."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.draw = random.Random(seed)
        self.dims = self.draw.choice([1, 2, 2, 2, 3])
        side = 4 if self.dims == 3 else SIDE
        self.shape = (self.draw.choice([1, 2, 4]), *[side] * self.dims)

    def network(self) -> nn.Module:
        layers: list[nn.Module] = []
        x = torch.rand(2, *self.shape)
        for _ in range(self.draw.randint(1, 4)):
            layer, x = self._that_fits(x)
            layers.append(layer)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(x.flatten(1).shape[1], 3))

    def _that_fits(self, x: Tensor) -> tuple[nn.Module, Tensor]:
        while True:
            try:
                layer = self.layer(x)
                one, y = layer.eval()(x[:1]), layer(x)
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
                continue  # it does not fit these inputs
            if one.shape == y[:1].shape and 2 <= one.numel() <= 600:  # samples do not mix
                return layer, y

    def layer(self, x: Tensor) -> nn.Module:
        kinds = [self.product, self.product, self.activation, self.norm, self.pool, self.rest, self.beside]
        kinds.append(self.resized)
        return self.draw.choice(kinds)(x)

    def product(self, x: Tensor) -> nn.Module:
        draw, channels, dims = self.draw, x.shape[1], x.ndim - 2
        if dims == 0 or draw.random() < 0.1:
            if draw.random() < 0.2:
                return Times(x.shape[-1], draw.randint(2, 9))
            return nn.Linear(x.shape[-1], draw.randint(2, 9), bias=draw.random() < 0.8)
        if dims == 1 and draw.random() < 0.3:
            return Recurrent(self.recurrent(x))
        groups = draw.choice([1, 1, channels])
        transposed = draw.random() < 0.25
        return getattr(nn, f"Conv{'Transpose' * transposed}{dims}d")(
            channels,
            groups * draw.randint(1, 3),
            draw.randint(1, 3),
            stride=draw.randint(1, 2),
            padding=draw.randint(0, 1),
            dilation=draw.randint(1, 2),
            groups=groups,
            bias=draw.random() < 0.8,
            padding_mode="zeros" if transposed else draw.choice(["zeros", "zeros", "reflect", "circular"]),
        )

    def recurrent(self, x: Tensor) -> nn.RNNBase:
        kind, size = self.draw.choice([nn.RNN, nn.LSTM, nn.GRU]), self.draw.randint(2, 5)
        both = self.draw.random() < 0.3
        return kind(x.shape[2], size, self.draw.randint(1, 2), batch_first=True, bidirectional=both)

    def activation(self, x: Tensor) -> nn.Module:
        if self.draw.random() < 0.4:
            function = self.draw.choice(ACTIVATION_FUNCTIONS)
            return Applied(function.__name__, function)
        return self.draw.choice(ACTIVATIONS)()

    def norm(self, x: Tensor) -> nn.Module:
        kinds: list[Callable[[], nn.Module]] = [
            lambda: getattr(nn, f"BatchNorm{max(1, x.ndim - 2)}d")(x.shape[1], affine=self.draw.random() < 0.7),
            lambda: nn.GroupNorm(self.draw.choice([1, 2]), x.shape[1]),
            lambda: nn.LayerNorm(x.shape[self.draw.randint(1, x.ndim - 1) :]),
        ]
        return used(self.draw.choice(kinds)())

    def pool(self, x: Tensor) -> nn.Module:
        draw, dims = self.draw, x.ndim - 2
        kind = draw.choice(["Max", "Avg"])
        if draw.random() < 0.3:
            return getattr(nn, f"Adaptive{kind}Pool{dims}d")(draw.randint(1, 3))
        return getattr(nn, f"{kind}Pool{dims}d")(draw.randint(2, 3), draw.randint(1, 2), draw.randint(0, 1))

    def resized(self, x: Tensor) -> nn.Module:
        draw, dims = self.draw, x.ndim - 2
        kinds: list[Callable[[], nn.Module]] = [
            *[
                lambda kind=kind: getattr(nn, f"{kind}Pad{dims}d")(1)
                for kind in ("Zero", "Reflection", "Replication")
            ],
            lambda: getattr(nn, f"ConstantPad{dims}d")(1, draw.uniform(-1, 1)),
            lambda: nn.Upsample(
                x.shape[-1] + draw.choice([-1, 1]), mode=draw.choice(["nearest", "bilinear", "area"])
            ),
            lambda: draw.choice([nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d])(scale_factor=2),
        ]
        return draw.choice(kinds)()

    def rest(self, x: Tensor) -> nn.Module:
        kinds: list[Callable[[], nn.Module]] = [nn.Identity, nn.Flatten, nn.Dropout, nn.AlphaDropout]
        kinds += [getattr(nn, f"Dropout{max(1, x.ndim - 2)}d"), nn.FeatureAlphaDropout]
        kinds += [lambda: nn.Unflatten(1, (1, x.shape[1])), lambda: nn.PixelShuffle(2)]
        kinds += [lambda: nn.ChannelShuffle(2), lambda: nn.PixelUnshuffle(2)]
        kinds += [lambda name=name: Applied(name, MIXED[name]) for name in MIXED]
        return self.draw.choice(kinds)()

    def beside(self, x: Tensor) -> nn.Module:
        first, _ = self._that_fits(x)
        second = self.draw.choice([nn.Identity(), nn.Sigmoid(), nn.Tanh()])
        return Beside(first, second, self.draw.choice(JOINS))
