"""Linear bounds: no chip is below them, intervals are never above them, and they see what intervals forget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import LARGE, NETWORKS, Skewed, check_no_chip_is_below, margins_of, of, used
from random_networks import Applied
from torch import Tensor, nn

from worstcase import evaluate
from worstcase.attacks import FLWC
from worstcase.certificate import Unsupported, certify, linear_parts
from worstcase.certificate.interval import IntervalBounds
from worstcase.certificate.linear import LinearBounds
from worstcase.certificate.products import Interval, slack, terms
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.models import MLP, LeNet
from worstcase.task import right_answers


class Residual(nn.Module):
    """A shortcut, a sum with an exact number, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), used(nn.BatchNorm2d(4))
        self.second, self.out = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.out((F.relu(self.second(x)) + x + 0.1).mean((2, 3)))


class Functional(nn.Module):
    """Functions that compute with the weights of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 2, groups=2, bias=False)
        self.third, self.out = nn.Linear(36, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.first.weight, self.first.bias, padding=1).relu()
        x = F.conv2d(x, self.second.weight, None, 2, groups=2).relu().flatten(1)
        return F.linear((x @ self.third.weight.T).relu(), self.out.weight, bias=self.out.bias)


class InARow(nn.Module):
    """Of one dimension, as for an electrocardiogram."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 5, padding=2), nn.Conv1d(4, 4, 3, stride=2, groups=2)
        self.third, self.out = nn.Conv1d(4, 3, 3, padding="same", dilation=2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.first(x.flatten(2))), 3, 2, padding=1)
        x = F.relu(F.conv1d(x, self.second.weight, self.second.bias, 2, groups=2))
        return self.out(F.avg_pool1d(F.relu(self.third(x)), 2).flatten(1))


class Joined(nn.Module):
    """What came before stays beside what comes after; positions share a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(3, 4, 3, padding="same")
        self.mixed, self.out = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.first(x))], dim=1)
        x = torch.concat([F.relu(self.second(x)), x], -3)
        x = F.relu(self.mixed(x.permute(0, 2, 3, 1)))
        return self.out(x.sum((1, 2)) / 36) - x.new_ones(x.size(0), 1) + torch.zeros((len(x), 3))


class TakenApart(nn.Module):
    """Tensors that are taken apart and put together, and what is broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(1, 4, 3), nn.Conv2d(3, 2, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(F.pixel_shuffle(self.first(x).relu_(), 2), 2)
        x = x - x.mean((2, 3), keepdim=True)
        y = torch.cat([torch.ones_like(x[:, :1]), torch.cat(x.chunk(4, 1)[1:3][::-1], 1)], 1)
        return self.out(
            torch.stack([F.relu_(self.second(y)), x[:, :2], x[:, :1] - x[:, 2:]], -1)[..., 1:].flatten(1)
        )


class Pooled(nn.Module):
    """Windows that reach over the end, are given in lists, or are as large as the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 2, padding=1)
        self.pool, self.out = nn.MaxPool2d(3, 2, ceil_mode=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.second(self.pool(self.first(x))), [2, 3], [1, 1], [0, 1])
        return self.out(F.max_pool2d(x, kernel_size=x.size()[2:]).flatten(1))


class Shuffled(nn.Module):
    """Halves of the channels, a shortcut of every other pixel, padded, and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(2, 4, 3, 2, 1, bias=False)
        self.third, self.out = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Linear(64, 3)
        self.register_buffer("middle", torch.full((4, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x, y = (F.relu(self.first(x)) - self.middle).chunk(2, 1)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), value=0.1) - 0.5 * self.second(y)
        x = (1 - F.relu(x)).view(-1, 2, 2, 3, 3).transpose(1, 2).reshape(-1, 4, 3, 3)
        x = F.interpolate(F.relu(self.third(x.detach())), 4)
        return self.out(-x.flatten(1) / 0.7)


OWN = {
    "mlp": lambda: of(nn.Flatten(), nn.Linear(36, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), inputs=9),
    "both signs": lambda: of(nn.Flatten(), nn.Linear(36, 9), nn.Linear(9, 9), nn.ReLU(), inputs=9),
    "narrow": lambda: of(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(), inputs=5),
    "dilation": lambda: of(nn.Conv2d(1, 3, 2, dilation=2), nn.ReLU(), nn.Conv2d(3, 2, 2), inputs=18),
    "overlapping": lambda: of(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 3, 2), inputs=3),
    "average": lambda: of(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.ReLU(), inputs=27),
    "pooled": Pooled,
    "leaky": lambda: of(nn.Conv2d(1, 3, 3), nn.LeakyReLU(0.2), nn.Conv2d(3, 3, 2), nn.LeakyReLU(2), inputs=27),
    "bent": lambda: of(
        nn.Conv2d(1, 3, 3), Applied("abs", abs), nn.Conv2d(3, 3, 2), Applied("leaky", F.leaky_relu), inputs=27
    ),
    "adaptive": lambda: of(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d((None, 2)), nn.ReLU(), inputs=24),
    "taken apart": TakenApart,
    "residual": Residual,
    "functions": Functional,
    "in a row": InARow,
    "joined": Joined,
    "shuffled": Shuffled,
    "reflected": lambda: of(nn.Conv2d(1, 3, 3, padding=2, padding_mode="reflect"), nn.ReLU(), inputs=192),
    "resized": lambda: of(nn.ReplicationPad2d(1), nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=1.5), inputs=162),
}
SUPPORTED = ["linear", "no bias", "no activation", "stride", "two", "groups", "batch norm", "max pool", "dropout"]
ALL = {name: (make, (1, 6, 6)) for name, make in OWN.items()}
ALL |= {name: NETWORKS[name] for name in [*SUPPORTED, "squeezed", "turned", *LARGE]}
del ALL["torchvision's resnet18"]  # its kernels are wide, and the narrow one is alike


@pytest.mark.parametrize("thg", [1e-6, 0.01, 0.2])
@pytest.mark.parametrize("kind", [Crossbar, Skewed])
@pytest.mark.parametrize("name", ALL)
def test_no_chip_is_below_the_bound(name: str, kind: type[Crossbar], thg: float) -> None:
    make, shape = ALL[name]
    for seed in range(1 if name in LARGE else 3):
        torch.manual_seed(seed)
        crossbar, images = kind(make(), thg), torch.randn(6, *shape)
        chips = 4 if name in LARGE else 12
        check_no_chip_is_below(crossbar, images, chips=chips, seed=seed, method=LinearBounds)


@pytest.mark.parametrize("name", ["two", "mlp", "residual", "max pool"])
def test_quantised_weights_and_float64(name: str) -> None:
    make, shape = ALL[name]
    torch.manual_seed(0)
    images = torch.randn(6, *shape)
    check_no_chip_is_below(Crossbar(make(), 0.02, weight_bits=4), images, chips=12, method=LinearBounds)
    check_no_chip_is_below(Crossbar(make().double(), 0.02), images.double(), chips=12, method=LinearBounds)


@pytest.mark.parametrize("name", ALL)
def test_intervals_never_prove_more(name: str) -> None:
    make, shape = ALL[name]
    torch.manual_seed(0)
    crossbar, images = Crossbar(make(), 0.01).eval(), torch.randn(20, *shape)
    labels = crossbar(images).argmax(1)
    labels[::3] = 0  # some are wrong
    with torch.no_grad():
        linear, interval = (method(crossbar).margins(images, labels) for method in (LinearBounds, IntervalBounds))
    assert (linear >= interval).all()
    if name in ("two", "mlp", "narrow", "residual", "leaky", "bent", "lenet", "three layers"):
        assert (linear > interval).any()


@pytest.mark.parametrize("name", ALL)
def test_in_a_box_of_nothing_each_bound_is_the_output(name: str) -> None:
    make, shape = ALL[name]
    torch.manual_seed(0)
    crossbar, images = Crossbar(make().double(), 1e-10).eval(), torch.randn(4, *shape).double()
    bounds = LinearBounds(crossbar)
    with torch.no_grad():
        outputs = crossbar(images)
        bounds.run(Interval.of(images))
        bounds._opened(torch.arange(4))
        rows = torch.arange(4).repeat_interleave(outputs.shape[1])
        (end,) = next(n for n in bounds._nodes if n.op == "output").all_input_nodes
        for sign in (1, -1):
            least = bounds._lower(end, sign * torch.eye(outputs.shape[1]).double().repeat(4, 1), rows)
            assert (least <= sign * outputs.flatten()).all()
            torch.testing.assert_close(least, sign * outputs.flatten(), rtol=1e-6, atol=1e-6)


def test_a_kernel_that_all_positions_share_is_bounded_exactly() -> None:
    """With exact inputs the worst kernel of a linear network is known; intervals choose one for each position."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)).double()
    crossbar = Crossbar(net, 0.1, exclude=["2"], arrays=["0.bias"]).eval()
    images = torch.randn(5, 1, 6, 6).double()
    labels = crossbar(images).argmax(1)
    bound = crossbar.bound()
    zero = {name: torch.zeros_like(net.get_parameter(name)).requires_grad_() for name in bound}
    worst = torch.full((5, 3), torch.inf).double()
    z = crossbar(images, zero)
    for n in range(5):
        for other in set(range(3)) - {int(labels[n])}:
            margin = z[n, labels[n]] - z[n, other]
            slopes = torch.autograd.grad(margin, list(zero.values()), retain_graph=True)
            lost = [(bound[name] * slope.abs()).sum() for name, slope in zip(zero, slopes, strict=True)]
            worst[n, other] = (margin - sum(lost)).detach()
    with torch.no_grad():
        found = LinearBounds(crossbar).margins(images, labels)
        interval = IntervalBounds(crossbar).margins(images, labels)
    asked = torch.arange(5)[interval.amin(1) <= 0], interval.argmin(1)[interval.amin(1) <= 0]
    assert len(asked[0])
    torch.testing.assert_close(found[asked], worst[asked], rtol=1e-6, atol=1e-6)
    assert (worst[asked] - interval[asked]).mean() > 0.05


def test_one_hidden_layer_is_exact_for_each_margin() -> None:
    """Found by brute force over all corners of both layers' weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    crossbar, x = Crossbar(net, 0.2).eval(), torch.rand(6, 3).double()
    labels = crossbar(x).argmax(1)
    box = crossbar.box
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 10)
    with torch.no_grad():
        found = torch.stack(
            [
                margins_of(
                    crossbar(x, box.at({"0.weight": s[:6].view(2, 3), "2.weight": s[6:].view(2, 2)})), labels
                )
                for s in signs
            ]
        ).amin(0)
        torch.testing.assert_close(LinearBounds(crossbar).margins(x, labels), found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [lambda: MLP(3, 36, [12, 12]), lambda: of(nn.Conv2d(1, 4, 3), nn.ReLU(), inputs=64)]
)
def test_no_certified_decision_fails_on_random_and_attacked_chips(make) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    images = torch.rand(90, 1, 6, 6, generator=generator)
    images[range(90), 0, 2 * labels] += 1
    torch.manual_seed(0)
    net = make()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    batches = list(zip(images.split(32), labels.split(32), strict=True))
    crossbar = Crossbar(net, 0.05)
    proven, intervals = certify(crossbar, batches, "linear"), certify(crossbar, batches)
    assert intervals.accuracy < proven.accuracy < 1
    assert (intervals.certified <= proven.certified).all()
    chips = [crossbar.box.sample(("uniform", "vertex")[i % 2], generator) for i in range(200)]
    for seed in range(3):
        attacked = FLWC()(crossbar, batches, seed=seed, progress=False)
        assert proven.accuracy <= attacked.accuracy <= attacked.clean_accuracy
        chips.append(attacked.perturbation)
    with torch.no_grad(), evaluating(crossbar):
        for chip in chips:
            assert not (proven.certified & ~right_answers(crossbar(images, chip), labels)).any()


def test_what_one_batch_proves_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    crossbar, images = Crossbar(LeNet(), 0.003).eval(), torch.rand(6, 1, 28, 28)
    labels = crossbar(images).argmax(1)
    with torch.no_grad():
        whole = LinearBounds(crossbar).margins(images, labels)
        monkeypatch.setattr("worstcase.certificate.backward.MEMORY", 1)  # one sum at a time
        torch.testing.assert_close(LinearBounds(crossbar).margins(images, labels), whole, rtol=1e-5, atol=1e-6)


def after_a_convolution(f: Callable[[Tensor], Tensor]) -> nn.Module:
    return of(nn.Conv2d(1, 2, 3), Applied("f", f), inputs=32)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (of(nn.Flatten(), nn.Linear(36, 4), nn.GELU(), inputs=4), r"^2 \(GELU\) by linear bounds"),
        (of(nn.ConvTranspose2d(1, 2, 3), nn.ReLU(), inputs=128), r"^0 \(ConvTranspose2d\) by linear bounds"),
        (
            of(nn.Flatten(1, 2), nn.Linear(6, 6), nn.MaxPool2d(3, 1, 1), inputs=36),
            r"^2 \(MaxPool2d\) of images without",
        ),
        (
            of(nn.Conv2d(1, 2, 3), nn.AdaptiveMaxPool2d(3), inputs=18),
            r"^1 \(AdaptiveMaxPool2d\) of windows that overlap",
        ),
        (after_a_convolution(lambda x: x * x), "mul, which mixes samples or is not linear, by linear bounds"),
        (after_a_convolution(lambda x: x.roll(1, 0)), "roll, which mixes samples"),
        (after_a_convolution(lambda x: x.flip(0)), "flip, which mixes samples"),
        (after_a_convolution(lambda x: x.sum(0, keepdim=True) + x), "sum, which mixes samples"),
        (after_a_convolution(lambda x: x * x.relu()), "mul of 2 inputs by linear bounds"),
        (after_a_convolution(lambda x: x - x.mean((1, 2))), "sub of different shapes by linear bounds"),
        (
            of(nn.Flatten(1, 2), nn.GRU(6, 4, batch_first=True), Applied("outputs", lambda t: t[0]), inputs=24),
            r"^1 \(GRU\) by linear",
        ),
    ],
)
def test_what_has_no_linear_rule_is_named(net: nn.Module, named: str) -> None:
    torch.manual_seed(0)
    crossbar = Crossbar(net, 0.3).eval()
    images = torch.randn(4, 1, 6, 6)
    with pytest.raises(Unsupported, match=named):
        certify(crossbar, [(images, crossbar(images).argmax(1))], "linear")


def test_a_cast_to_the_same_type_costs_nothing() -> None:
    torch.manual_seed(0)
    plain, images = of(nn.Conv2d(1, 2, 3), nn.ReLU(), inputs=32), torch.randn(4, 1, 6, 6)
    cast = nn.Sequential(*plain[:2], Applied("float", lambda x: x.float()), *plain[2:])
    labels = plain(images).argmin(1)
    with torch.no_grad():
        found, expected = (LinearBounds(Crossbar(net, 0.01)).margins(images, labels) for net in (cast, plain))
    assert found.equal(expected)


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 64), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().unflatten(1, (16, 4)).mean(1))


def test_all_terms_of_a_mean_round_however_few_samples_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    counts, net, x = [], Means(), torch.randn(50, 4)
    monkeypatch.setattr(linear_parts, "slack", lambda terms, like: counts.append(terms) or slack(terms, like))
    labels = net(x).argmax(1)
    labels[0] = (labels[0] + 1) % 6  # which stays open
    certify(Crossbar(net, 1e-6), [(x, labels)], "linear")
    assert set(counts) == {16, 64, 6}


class Enlarged(nn.Module):
    """A place that is a point of the image in float64, and a little beside it in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 1, 1, bias=False), nn.Linear(15, 2, bias=False)
        self.first.weight.data.fill_(1)
        self.out.weight.data = F.one_hot(torch.tensor([12, 12]), 15) * torch.tensor([[-1.0], [1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.interpolate(self.first(x), size=(15, 1), mode="bilinear").flatten(1))


def test_places_between_points_are_rounded() -> None:
    image = torch.zeros(1, 1, 39, 1)
    image[:, :, 31] = 1000
    crossbar, wrong = Crossbar(Enlarged(), 1e-9).eval(), torch.tensor([0])
    with torch.no_grad():
        least = LinearBounds(crossbar).margins(image, wrong)
        assert (least <= margins_of(crossbar(image), wrong)).all()


def test_a_weight_of_one_dimension_is_one_sum() -> None:
    assert (terms(torch.ones(7)), terms(torch.ones(3, 7)), terms(torch.ones(3, 7), transposed=True)) == (7, 7, 3)


class Query(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.q, self.b = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.query = nn.Parameter(torch.randn(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) + self.q(self.query)).relu())


def test_a_layer_of_a_constant_is_bounded_by_intervals() -> None:
    torch.manual_seed(0)
    net, x = Query(), torch.randn(50, 4)
    with torch.no_grad():
        net.b.bias -= net(x).mean(0)
    x = x[net(x).softmax(1)[:, 0].argsort(descending=True)]  # the first of class 0, which intervals prove
    for thg, by in ((1e-4, "linear"), (0.02, "interval")):  # at the first nothing is left open
        result = evaluate(
            Crossbar(net, thg), [(x, net(x).argmax(1))], [FLWC()], certificate="linear", progress=False
        )
        assert result.certified_accuracy and result.certificates[0].method == by
