"""The bound from below: no chip is below it, and it is exact where it can be."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from worstcase.attacks import FLWC
from worstcase.attacks.base import accuracy, right_answers
from worstcase.certificate import Unsupported, certify
from worstcase.certificate.interval import IntervalBounds
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar, evaluating
from worstcase.models import ConvNet, LeNet, ResNet18


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


class Squeezed(nn.Module):
    """A convolution gives the answer, as in SqueezeNet, and one weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 3, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(self.a(x).relu())).mean((2, 3))


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
    "squeezed": Squeezed,
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
    "convnet": (lambda: ConvNet(width=0.05), (3, 32, 32)),
    "resnet18": (lambda: ResNet18(width=0.05), (3, 32, 32)),
    "torchvision's resnet18": (lambda: torchvision.models.resnet18(num_classes=5), (3, 33, 33)),
}
NETWORKS = {name: (make, (1, 6, 6)) for name, make in IMAGES.items()} | LARGE


def margins_of(logits: Tensor, labels: Tensor) -> Tensor:
    logits = logits.double()
    return (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], torch.inf)


def check_no_chip_is_below(crossbar: Crossbar, images: Tensor, *, chips: int, seed: int = 0) -> None:
    """Random chips, random corners, and for each decision in turn the corner to which its gradient leads."""
    generator = torch.Generator().manual_seed(seed)
    crossbar.eval()
    labels = crossbar(images).argmax(1).detach()
    least = IntervalBounds(crossbar).margins(images, labels).detach()
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
        assert (least <= found + rounded).all(), f"chip {number} is below the bound"


@pytest.mark.parametrize("thg", [1e-6, 0.01, 0.2])
@pytest.mark.parametrize("kind", [Crossbar, Skewed])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_chip_is_below_the_bound(name: str, kind: type[Crossbar], thg: float) -> None:
    make, shape = NETWORKS[name]
    for seed in range(1 if name in LARGE else 3):
        torch.manual_seed(seed)
        crossbar = kind(make(), thg)
        check_no_chip_is_below(crossbar, torch.randn(6, *shape), chips=4 if name in LARGE else 12, seed=seed)


@pytest.mark.parametrize("bits", [(4, None), (None, 4), (3, 5)])
@pytest.mark.parametrize("name", ["mlp", "groups", "batch norm", "squeezed"])
def test_no_chip_is_below_the_bound_of_quantised_weights_and_outputs(name: str, bits: tuple) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    crossbar = Crossbar(make(), 0.02, weight_bits=bits[0], activation_bits=bits[1])
    images = torch.randn(6, *shape)
    crossbar.calibrate([(images, images)])
    check_no_chip_is_below(crossbar, images, chips=20)


def test_what_is_not_programmed_does_not_deviate() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 1, 6, 6)
    net = IMAGES["mlp"]()
    partly, whole = Crossbar(net, 0.02, layers=["6"]), Crossbar(net, 0.02)
    check_no_chip_is_below(partly, images, chips=20)
    labels = partly(images).argmax(1)
    assert IntervalBounds(partly).margins(images, labels).sort(1)[0][:, 0].mean() > (
        IntervalBounds(whole).margins(images, labels).sort(1)[0][:, 0].mean()
    )


@pytest.mark.parametrize("kind", [Crossbar, Skewed])
def test_one_linear_layer_is_exact(kind: type[Crossbar]) -> None:
    torch.manual_seed(0)
    crossbar = kind(nn.Linear(7, 4).double(), 0.1)
    x, labels = torch.randn(9, 7).double(), torch.randint(4, (9,))
    box, rows = crossbar.box, torch.arange(9)
    least, most = x.clamp(min=0), x.clamp(max=0)
    low = least @ box.low["weight"].expand(4, 7).T + most @ box.high["weight"].expand(4, 7).T
    high = least @ box.high["weight"].expand(4, 7).T + most @ box.low["weight"].expand(4, 7).T
    z = crossbar(x)
    worst = (z + low)[rows, labels][:, None] - (z + high)
    worst[rows, labels] = torch.inf
    torch.testing.assert_close(IntervalBounds(crossbar).margins(x, labels), worst, rtol=1e-12, atol=1e-12)


def corner_chips(box: Box) -> list[dict[str, Tensor]]:
    sizes = {name: w.numel() for name, w in box.weights.items()}
    corners = []
    for signs in itertools.product([-1.0, 1.0], repeat=sum(sizes.values())):
        parts = torch.tensor(signs).double().split(list(sizes.values()))
        corners.append(
            box.at({n: p.reshape(w.shape) for (n, w), p in zip(box.weights.items(), parts, strict=True)})
        )
    return corners


@pytest.mark.parametrize("hidden", [1, 2])
def test_two_layers_against_all_corners(hidden: int) -> None:
    """With one hidden unit the bound is the lowest of all corners; with two it is below, but not by much."""
    for seed in range(10):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, 3, bias=False)).double()
        crossbar = Crossbar(net, 0.1)
        x = torch.randn(5, 2).double()
        labels = crossbar(x).argmax(1)
        found = torch.stack([margins_of(crossbar(x, chip), labels) for chip in corner_chips(crossbar.box)])
        lowest, least = found.amin(0), IntervalBounds(crossbar).margins(x, labels)
        assert (least <= lowest).all()
        if hidden == 1:
            torch.testing.assert_close(least, lowest, rtol=1e-9, atol=1e-9)


def test_sums_in_any_order_stay_above_the_bound() -> None:
    """What cancels in exact arithmetic leaves an error in float32, another for each order of the sum."""
    torch.manual_seed(0)
    layer = nn.Linear(2000, 2, bias=False)
    images = torch.randn(20, 2000) * 1000
    crossbar = Crossbar(layer, 1e-9)
    labels = crossbar(images).argmax(1)
    least = IntervalBounds(crossbar).margins(images, labels)
    exact = margins_of(images.double() @ layer.weight.double().T, labels)
    assert (least <= exact).all()
    for _ in range(50):
        order = torch.randperm(2000)
        one_by_one = (images[:, None, order] * layer.weight[:, order]).cumsum(2)[:, :, -1]
        for z in (images[:, order] @ layer.weight[:, order].T, one_by_one):
            assert (least <= margins_of(z, labels)).all()
    absolute = images.abs() @ layer.weight.abs().T
    assert ((exact - least)[exact.isfinite()] <= 6e-4 * absolute.max()).all()


@pytest.fixture
def trained_net() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small network that has learnt three classes, and the data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.randn(90, 1, 6, 6, generator=generator)
    images[range(90), 0, 2 * labels] += 2
    torch.manual_seed(0)
    net = of(nn.Conv2d(1, 4, 3), nn.ReLU(), inputs=64)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net, list(zip(images.split(32), labels.split(32), strict=True))


def test_no_certified_decision_fails_on_random_and_attacked_chips(trained_net: tuple) -> None:
    net, batches = trained_net
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    generator = torch.Generator().manual_seed(0)
    for thg in (0.03, 0.06, 0.1):
        crossbar = Crossbar(net, thg)
        proven = certify(crossbar, batches)
        assert 0.05 < proven.accuracy < 1
        chips = [crossbar.box.sample(("uniform", "vertex")[i % 2], generator) for i in range(200)]
        for seed in range(5):
            attacked = FLWC()(crossbar, batches, seed=seed, progress=False)
            assert proven.accuracy <= attacked.accuracy <= attacked.clean_accuracy
            chips.append(attacked.perturbation)
        with torch.no_grad(), evaluating(crossbar):
            for chip in chips:
                assert not (proven.certified & ~right_answers(crossbar(images, chip), labels)).any()


def test_a_larger_box_proves_less(trained_net: tuple) -> None:
    net, batches = trained_net
    proven = [certify(Crossbar(net, thg), batches).certified for thg in (0, 0.003, 0.01, 0.03, 0.1, 0.3)]
    assert all((large <= small).all() for small, large in itertools.pairwise(proven))
    assert proven[1].sum() > proven[3].sum() > proven[5].sum()


def test_where_nothing_deviates_what_is_right_is_proven(trained_net: tuple) -> None:
    net, batches = trained_net
    assert certify(Crossbar(net, 0), batches).accuracy == accuracy(Crossbar(net, 0), batches) > 0.9
    almost = Crossbar(net, 1e-7)  # here the bound for rounding is all
    assert certify(almost, batches).accuracy == accuracy(almost, batches)


def test_the_size_of_batches_does_not_matter(trained_net: tuple) -> None:
    net, batches = trained_net
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    images = images.abs()  # not negative, but that is no matter of the network
    crossbar = Crossbar(net, 0.03)
    whole = IntervalBounds(crossbar.eval()).margins(images, labels)
    single = [IntervalBounds(crossbar).margins(i, j) for i, j in zip(images.split(1), labels.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(single), whole, rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was(trained_net: tuple) -> None:
    net, batches = trained_net
    before = {name: t.clone() for name, t in net.state_dict().items()}
    crossbar = Crossbar(net.train(), 0.03)
    certify(crossbar, batches)
    assert net.training and crossbar.thg == 0.03
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


class ReusesWhatChanged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1))
        flat = x.view(-1, 3)
        F.relu(x, inplace=True)
        return flat + x


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1))
        return x if x.sum() > 0 else -x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)


class Sorts(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)).sort(1)[0]


def hooked() -> nn.Module:
    net = IMAGES["mlp"]()
    net[1].register_forward_hook(lambda module, inputs, output: -output)
    return net


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: of(nn.Flatten(), nn.Linear(36, 4), Recurrent(), inputs=4), "2.cell .GRUCell."),
        (lambda: nn.Sequential(IMAGES["mlp"](), nn.LogSoftmax(1)), "1 .LogSoftmax."),
        (lambda: of(nn.Conv2d(1, 2, 3), nn.LeakyReLU(-0.1), inputs=32), "falls below 0"),
        (lambda: of(nn.BatchNorm2d(1, track_running_stats=False), inputs=36), "0 .BatchNorm2d."),
        (lambda: IMAGES["mlp"]().bfloat16(), "bfloat16: float32 or float64"),
        (hooked, "1 .Linear. with a hook"),
        (ReusesWhatChanged, "relu, which changes in place"),
        (Decides, "Decides cannot be traced"),
        (lambda: Sorts(36, 3), "Tensor.sort"),
    ],
)
def test_what_has_no_rule_is_named(make: Callable[[], nn.Module], named: str) -> None:
    crossbar = Crossbar(make(), 0.03)
    images = torch.randn(2, 1, 6, 6, dtype=next(crossbar.parameters()).dtype)
    with pytest.raises(Unsupported, match=named):
        certify(crossbar, [(images, torch.tensor([0, 1]))])


class Signs(nn.Linear):
    """A binary layer: it multiplies with the signs of its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.sign(), self.bias)


@pytest.mark.parametrize(
    ("net", "labels", "named"),
    [
        (nn.Sequential(Signs(4, 3)), torch.zeros(2, dtype=torch.long), "0.weight, which its layer computes"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), torch.zeros(2).long(), "0.weight"),
        (nn.Sequential(nn.Linear(4, 1)), torch.tensor([0, 1]), "(2, 1): (N, classes) of two or more"),
        (nn.Sequential(nn.Linear(4, 3)), torch.ones(2, 3).long(), "decisions other than"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))),
            torch.zeros(2, 1).long(),
            "decisions other than",
        ),
    ],
    ids=["binary", "weight norm", "one logit", "several labels", "pixels"],
)
def test_weights_and_tasks_without_a_rule_are_never_proven(net: nn.Module, labels: Tensor, named: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(Unsupported) as refused:
        certify(Crossbar(net, 0.1), [(torch.randn(2, 4), labels)])
    assert named in str(refused.value)
