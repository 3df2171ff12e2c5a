"""Networks of every layer that has a rule, and what must hold of their bounds on every chip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from worstcase.certificate.interval import IntervalBounds
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar
from worstcase.models import MLP, ConvNet, LeNet, ResNet18, ShallowConvNet


class Skewed(Crossbar):
    """Its box is another for each weight, and wider on one side."""

    @property
    def box(self) -> Box:
        box, generator = super().box, torch.Generator().manual_seed(0)
        ends = [
            {n: e * torch.rand(box.weights[n].shape, generator=generator).to(e.dtype) for n, e in end.items()}
            for end in (box.low, box.high)
        ]
        return Box({n: e / 4 for n, e in ends[0].items()}, ends[1], box.weights)


class Functional(nn.Module):
    """Functions and methods in place of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.out = nn.Linear(16, 3)
        self.register_buffer("mean", torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.3 * 0.5 + 1
        x = F.relu(self.conv(x), inplace=True)
        x = F.max_pool2d(x, 3, 2)
        y = F.conv2d(x, self.deep.weight, self.deep.bias, padding=1, groups=2).tanh() * x.sigmoid()
        y += x
        first, second = y.chunk(2, dim=1)
        x = torch.cat([second, first], 1).transpose(2, 3).contiguous()
        x = F.dropout(x, training=self.training).view(x.size(0), -1)
        return self.out(x - 0.2)


class Elementwise(nn.Module):
    """More of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = -self.a(x.float().squeeze(1))
        y = torch.maximum(self.b(x.abs()), x.clamp(-0.5, 0.4)).div(3)
        y -= abs(x).amax(2, keepdim=True) / 2
        return self.out(torch.minimum(y, torch.neg(x)).sum(1))


class Rearranged(nn.Module):
    """Parameters of the network's own, and tensors that are taken apart and put together."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("turn", torch.randn(4, 4))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = (x.select(1, 0) @ self.a).relu().unbind(1)
        y = torch.matmul(torch.stack([rows[5].roll(1, 1), rows[0].flip(1)], 1), self.b)
        y = y.movedim(1, 2).swapaxes(1, 2).matmul(self.turn)
        return self.out(y.repeat(1, 1, 3).narrow(2, 2, 8).ravel().view(x.size(0), -1))


class Excited(nn.Module):
    """Squeeze and excitation, and channels that become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x * self.gate(x.mean((2, 3))).sigmoid().view(-1, 4, 1, 1).expand_as(x)
        x = F.pixel_unshuffle(F.pixel_shuffle(x, 2).repeat_interleave(2, 1), 4).view_as(x.repeat(1, 2, 1, 1))
        return self.out(F.channel_shuffle(x, 2)[:, 2:6].reshape(len(x), -1))


class Turned(nn.Module):
    """Parameters of the network's own that are turned, or got by name, and tensors as long as the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = (
            nn.Parameter(torch.randn(4, 6)),
            nn.Parameter(torch.randn(4, 4)),
            nn.Linear(7, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 6, 6)[:, 0]
        y = (x @ self.a.T).relu() @ self.get_parameter("b").t() - x[:, :4] @ self.b.mT
        return self.out(torch.cat([y, torch.zeros(len(x), 2), x.new_ones(x.shape[0], 1)], 1))


class Squeezed(nn.Module):
    """A convolution gives the answer, as in SqueezeNet, and one weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 3, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).relu())).mean((2, 3))


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, and beside them its last state."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        outputs, last = self.layer(x)
        state = last[0] if isinstance(self.layer, nn.LSTM) else last
        return torch.cat([outputs, state[-1:].transpose(0, 1)[:, :, :1].expand(-1, -1, outputs.shape[2])], 1)


def of(*layers: nn.Module, inputs: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 3))


def used(norm: nn.Module) -> nn.Module:
    """With statistics and parameters of a training, some scales below 0."""
    for name, t in [*norm.named_parameters(), *norm.named_buffers()]:
        if t.is_floating_point():
            t.data = torch.rand(t.shape) + 0.2 if name == "running_var" else torch.randn(t.shape)
    return norm


ACTIVATIONS = [nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign]
ACTIVATIONS += [nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.GELU, nn.SiLU, nn.Mish]
IMAGES = {
    "linear": lambda: of(inputs=36),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False)),
    "mlp": lambda: of(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU6(), inputs=9),
    "no activation": lambda: of(nn.Flatten(), nn.Linear(36, 9), nn.Linear(9, 9), inputs=9),
    "stride": lambda: of(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), inputs=36),
    "two": lambda: of(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 2, bias=False), nn.ReLU(), inputs=45),
    "groups": lambda: of(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), inputs=16),
    "dilation": lambda: of(nn.Conv2d(1, 3, 2, dilation=2), nn.Tanh(), nn.Conv2d(3, 2, 2), inputs=18),
    "reflected": lambda: of(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU(), inputs=72),
    "transposed": lambda: of(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, stride=2, groups=2), nn.ReLU(), inputs=162
    ),
    "1d": lambda: of(nn.Flatten(2), nn.Conv1d(1, 3, 5, stride=2), nn.ReLU(), nn.Conv1d(3, 2, 3), inputs=28),
    "batch norm": lambda: of(nn.Conv2d(1, 4, 3), used(nn.BatchNorm2d(4)), nn.ReLU(True), inputs=64),
    "group norm": lambda: of(nn.Conv2d(1, 4, 3), used(nn.GroupNorm(2, 4)), nn.ReLU(), inputs=64),
    "layer norm": lambda: of(nn.Flatten(), nn.Linear(36, 9), used(nn.LayerNorm(9)), nn.ReLU(), inputs=9),
    "max pool": lambda: of(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 1, 1), nn.ReLU(), inputs=64),
    "average pool": lambda: of(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(3, 2, 1), nn.Linear(2, 2), inputs=16),
    "adaptive": lambda: of(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(2), inputs=16),
    "dropout": lambda: of(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(), nn.Dropout(), inputs=64),
    "functions": Functional,
    "elementwise": Elementwise,
    "squeezed": Squeezed,
    "excited": Excited,
    "rearranged": Rearranged,
    "turned": Turned,
    "upsampled": lambda: of(
        nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.ReLU(), nn.Conv2d(2, 1, 3), inputs=36
    ),
    "bilinear": lambda: of(
        nn.Conv2d(1, 2, 3), nn.Upsample(size=7, mode="bilinear"), nn.Conv2d(2, 1, 3), inputs=25
    ),
    "padded": lambda: of(
        nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 3), nn.ConstantPad2d(1, -2.0), nn.ReplicationPad2d(1), inputs=100
    ),
    **{
        kind.__name__: lambda kind=kind: of(
            nn.Flatten(), nn.Linear(36, 9), kind(), nn.Linear(9, 9), kind(), inputs=9
        )
        for kind in ACTIVATIONS
    },
    "GELU by tanh": lambda: of(nn.Flatten(), nn.Linear(36, 9), nn.GELU("tanh"), inputs=9),
}
LARGE = {
    "lenet": (LeNet, (1, 28, 28)),
    "shallow": (lambda: ShallowConvNet(channels=4), (1, 28, 28)),
    "three layers": (lambda: MLP(hidden=[30, 20]), (1, 28, 28)),
    "convnet": (lambda: ConvNet(width=0.05), (3, 32, 32)),
    "resnet18": (lambda: ResNet18(width=0.05), (3, 32, 32)),
    "torchvision's resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (3, 33, 33)),
}
RECURRENT = {
    "rnn": lambda: nn.RNN(4, 5, batch_first=True),
    "rnn with relu": lambda: nn.RNN(4, 5, nonlinearity="relu", bias=False, batch_first=True),
    "lstm": lambda: nn.LSTM(4, 5, batch_first=True),
    "lstm of two levels both ways": lambda: nn.LSTM(4, 5, 2, bidirectional=True, batch_first=True),
    "projected lstm": lambda: nn.LSTM(4, 6, proj_size=5, batch_first=True),
    "gru": lambda: nn.GRU(4, 5, batch_first=True),
    "gru of two levels both ways": lambda: nn.GRU(4, 5, 2, bidirectional=True, batch_first=True),
}
NETWORKS = {name: (make, (1, 6, 6)) for name, make in IMAGES.items()} | LARGE
NETWORKS |= {
    name: (lambda make=make: of(Recurrent(layer := make()), inputs=30 * (1 + layer.bidirectional)), (5, 4))
    for name, make in RECURRENT.items()
}


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.double()
    return (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], torch.inf)


def check_no_chip_is_below(
    crossbar: Crossbar,
    images: Tensor,
    *,
    chips: int,
    seed: int = 0,
    method: type[IntervalBounds] = IntervalBounds,
) -> Tensor:
    """Random chips, random corners, and for each decision in turn the corner to which its gradient leads.

    Returns:
        The bound, of each margin.
    """
    generator = torch.Generator().manual_seed(seed)
    crossbar.eval()
    with torch.no_grad():
        labels = crossbar(images).argmax(1)
        least = method(crossbar).margins(images, labels)
    box = crossbar.box
    assert (least <= margins_of(crossbar(images), labels)).all()
    for number in range(chips):
        chip = box.sample(("uniform", "vertex")[number % 2], generator)
        if number % 4 > 1:
            zero = {name: d.requires_grad_() for name, d in box.zero().items()}
            one = slice(number % len(images), number % len(images) + 1)
            margin = margins_of(crossbar(images[one], zero), labels[one])[0]
            margin = margin[margin.argsort()[number % (len(margin) - 1)]]
            gradient = torch.autograd.grad(margin, list(zero.values()), allow_unused=True)
            moved = zip(zero, gradient, chip.values(), strict=True)
            chip = box.at({n: torch.sign(g) * -1 if g is not None else d for n, g, d in moved})
            box.project_(chip)
        with torch.no_grad():
            found = margins_of(crossbar(images, chip), labels)
        rounded = 2**-23 * least.abs()  # of the margin itself, which leaves its sign
        assert (least <= found + rounded).all(), f"chip {number} is below the bound, seed {seed}"
    return least
