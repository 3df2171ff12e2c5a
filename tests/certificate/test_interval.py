"""The bound from below: no chip is below it, and it is exact where it can be."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGES, LARGE, NETWORKS, Skewed, check_no_chip_is_below, margins_of, of
from random_networks import ACTIVATION_FUNCTIONS, ACTIVATIONS, Applied
from torch import Tensor, nn

from worstcase import evaluate
from worstcase.attacks import FLWC
from worstcase.attacks.passes import accuracy
from worstcase.certificate import Unsupported, certify, largest_thgs
from worstcase.certificate.interval import IntervalBounds
from worstcase.certificate.products import Interval
from worstcase.certificate.recurrent import STEPS
from worstcase.certificate.tables import FUNCTIONS, MODULES
from worstcase.chip.box import Box
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.modes import evaluating
from worstcase.task import right_answers


@pytest.mark.parametrize("thg", [1e-6, 0.01, 0.2])
@pytest.mark.parametrize("kind", [Crossbar, Skewed])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_chip_is_below_the_bound(name: str, kind: type[Crossbar], thg: float) -> None:
    make, shape = NETWORKS[name]
    for seed in range(1 if name in LARGE else 3):
        torch.manual_seed(seed)
        crossbar = kind(make(), thg, arrays=["a", "b"] if name in ("rearranged", "turned") else [])
        check_no_chip_is_below(crossbar, torch.randn(6, *shape), chips=4 if name in LARGE else 12, seed=seed)


@pytest.mark.parametrize("bits", [(4, None), (None, 4), (3, 5)])
@pytest.mark.parametrize("name", ["mlp", "groups", "batch norm", "squeezed", "lstm", "gru"])
def test_no_chip_is_below_the_bound_of_quantised_weights_and_outputs(name: str, bits: tuple) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    crossbar = Crossbar(make(), 0.02, weight_bits=bits[0], activation_bits=bits[1])
    images = torch.randn(6, *shape)
    crossbar.calibrate([(images, images)])
    check_no_chip_is_below(crossbar, images, chips=20)


@pytest.mark.parametrize("shape", [(), (1,), (1, 3)])
def test_no_chip_is_below_the_bound_where_a_bias_is_the_same_for_all(shape: tuple) -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.shift = nn.Linear(4, 3), nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.fc.weight, self.shift)

    torch.manual_seed(0)
    check_no_chip_is_below(Crossbar(Shifted(), 0.02), torch.randn(6, 4), chips=8)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 20.0])
def test_softplus_that_falls_at_its_threshold_leaves_its_bounds_nowhere(threshold: float) -> None:
    x = torch.linspace(-1, 2, 1201)
    for f, options in ((nn.Softplus(beta=2.0, threshold=threshold), ()), (F.softplus, (2.0, threshold))):
        rule = MODULES[nn.Softplus] if isinstance(f, nn.Softplus) else FUNCTIONS[f]
        for low, high in itertools.combinations(range(0, 1201, 24), 2):
            y, values = rule(f, Interval(x[low], x[high]), *options), f(x[low : high + 1], *options)
            assert y.low <= values.amin() and values.amax() <= y.high
    with pytest.raises(Unsupported, match="threshold=-1"):
        MODULES[nn.Softplus](nn.Softplus(threshold=-1.0), Interval(x[0], x[1]))


@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2)])
def test_a_norm_whose_own_parameters_are_in_devices_is_not_proven(norm: nn.Module, method: str) -> None:
    crossbar = Crossbar(nn.Sequential(nn.Linear(2, 2, bias=False), norm), 0.1, arrays=["1.*"]).eval()
    batches = [(torch.randn(5, 2), torch.zeros(5, dtype=torch.long))]
    with pytest.raises(Unsupported, match=r"1 .* whose own parameters are in devices"):
        certify(crossbar, batches, method)
    result = evaluate(crossbar, batches, [FLWC()], certificate=method, progress=False)
    assert not result.certified_accuracy and "own parameters are in devices" in result.record().not_certified


@pytest.mark.parametrize("rules", [MODULES, FUNCTIONS], ids=["layers", "functions"])
def test_an_activation_leaves_its_bounds_nowhere(rules: dict) -> None:
    """At points of many intervals, close to each other, such as where GELU is lowest."""
    torch.manual_seed(0)
    low = 4 * torch.randn(400)
    x = Interval(low, low + 3 * torch.rand(400))
    within = x.low + torch.linspace(0, 1, 301)[:, None] * (x.high - x.low)
    activations = [kind() for kind in ACTIVATIONS] if rules is MODULES else ACTIVATION_FUNCTIONS
    for f in activations:
        y, values = rules[type(f) if rules is MODULES else f](f, x), f(within.clamp(x.low, x.high))
        assert ((y.low <= values) & (values <= y.high)).all(), f
        assert (y.high - y.low <= values.amax(0) - values.amin(0) + 1e-3).all(), f  # and they are tight


def rnn(x: Tensor, y: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(x + y), c


def lstm(x: Tensor, y: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + y).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru(x: Tensor, y: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    (r, z, _), n = torch.sigmoid(x + y).chunk(3, 1), x[:, 2:]
    return (1 - z) * torch.tanh(n + r * y[:, 2:]) + z * h, c


@pytest.mark.parametrize(("kind", "step", "gates"), [(nn.RNN, rnn, 1), (nn.LSTM, lstm, 4), (nn.GRU, gru, 3)])
def test_a_step_of_a_recurrent_layer_leaves_its_bounds_nowhere(kind: type, step: Callable, gates: int) -> None:
    torch.manual_seed(0)
    lows = [2 * torch.randn(300, size) for size in (gates, gates, 1, 1)]
    ends = [Interval(low, low + torch.rand(low.shape)) for low in lows]
    chips = [
        torch.stack(step(*(t.low + torch.rand(t.low.shape).round() * (t.high - t.low) for t in ends)))
        for _ in range(2000)
    ]
    least, most = torch.stack(chips).amin(0), torch.stack(chips).amax(0)
    low, high = (
        torch.stack([getattr(bound, end) for bound in STEPS[kind](kind(1, 1), *ends)]) for end in ("low", "high")
    )
    assert (low <= least).all() and (most <= high).all()
    assert ((high - low) - (most - least)).mean() < 0.1  # and they are not much wider


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


def test_the_largest_th_g_is_where_the_proof_ends(trained_net: tuple) -> None:
    net, batches = trained_net
    crossbar = Crossbar(net, 0.2)
    largest = largest_thgs(crossbar, batches)
    assert crossbar.thg == 0.2 and list(largest) == [0.99, 0.95, 0.9]
    assert largest[0.9] > 1e-3
    for share, thg in largest.items():
        if thg is None:
            assert certify(Crossbar(net, 1e-6), batches).accuracy < share
        else:
            assert certify(Crossbar(net, thg), batches).accuracy >= share
            assert certify(Crossbar(net, 1.03 * thg), batches).accuracy < share


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
    single = [
        IntervalBounds(crossbar).margins(i, j) for i, j in zip(images.split(1), labels.split(1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(single), whole, rtol=1e-4, atol=1e-5)


def test_samples_that_are_bounded_one_by_one_prove_the_same(
    trained_net: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batches = trained_net
    crossbar = Crossbar(net, 0.03)
    whole = certify(crossbar, batches).certified
    monkeypatch.setattr("worstcase.certificate.interval.IN_CACHE", 1)
    assert torch.equal(certify(crossbar, batches).certified, whole)


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


class OneSequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(0, 2))[0]


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
        (lambda: of(nn.Flatten(), nn.Linear(36, 4), nn.GRUCell(4, 4), inputs=4), "2 .GRUCell."),
        (OneSequence, "one sequence without a batch"),
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
        (nn.Sequential(nn.Linear(4, 1)), torch.tensor([0, 1]), ", 1): (N, classes) of two or more"),
        (nn.Sequential(nn.Linear(4, 3)), torch.ones(2, 3).long(), "only outputs (N, C) with labels"),
        (
            nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1))),
            torch.zeros(2, 1).long(),
            "only outputs (N, C) with labels",
        ),
    ],
    ids=["binary", "weight norm", "one logit", "several labels", "pixels"],
)
def test_weights_and_tasks_without_a_rule_are_never_proven(net: nn.Module, labels: Tensor, named: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(Unsupported) as refused:
        certify(Crossbar(net, 0.1), [(torch.randn(2, 4), labels)])
    assert named in str(refused.value)


@pytest.mark.parametrize("method", ["interval", "linear"])
@pytest.mark.parametrize(
    "give", [lambda y, x: {"aux": x, "logits": y}, lambda y, x: (y, x)], ids=["dict", "tuple"]
)
def test_logits_among_other_outputs_are_proven_as_if_alone(give: Callable, method: str) -> None:
    class Gives(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return give(super().forward(x), x)

    torch.manual_seed(0)
    layers, x = (nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(40, 4)
    labels = nn.Sequential(*layers)(x).argmax(1)
    alone, among = (
        certify(Crossbar(kind(*layers), 0.05), [(x, labels)], method) for kind in (nn.Sequential, Gives)
    )
    assert torch.equal(alone.certified, among.certified) and 0 < among.accuracy < 1


@pytest.mark.parametrize(
    "made",
    [
        lambda x: torch.zeros((x.shape[0], 3)),
        lambda x: torch.zeros(x.shape[0], 3),
        lambda x: torch.ones(len(x), 1),
        lambda x: torch.full((x.size(0), 3), 0.5),
        lambda x: torch.ones(3).expand((x.shape[0], 3)),
        lambda x: torch.ones(1, 3).repeat(x.shape[0], 1),
    ],
    ids=["zeros", "zeros of numbers", "ones", "full", "expand", "repeat"],
)
def test_a_tensor_as_long_as_the_batch_may_be_made_while_it_is_traced(made: Callable) -> None:
    """PyTorch takes a proxy that passes for a tensor in its own code as one in memory: the process ended."""

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + made(x)

    torch.manual_seed(0)
    net, x = Adds().eval(), torch.randn(12, 4)
    plain = certify(Crossbar(net, 0.0), [(x, net(x).argmax(1))])
    assert plain.accuracy == 1 and certify(Crossbar(net, 0.01), [(x, net(x).argmax(1))]).accuracy > 0.5


def test_padding_with_zeros_loses_nothing_however_it_is_said() -> None:
    torch.manual_seed(0)
    first, rest = nn.Conv2d(1, 2, 3), [nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    pads = [nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.0), Applied("pad", lambda x: F.pad(x, (1, 1, 1, 1)))]
    nets = [nn.Sequential(first, nn.ReLU(), pad, *rest) for pad in pads]
    images = torch.randn(4, 1, 6, 6)
    labels = nets[0](images).argmax(1)
    with torch.no_grad():
        zeros, constant, function = (IntervalBounds(Crossbar(net, 0.05)).margins(images, labels) for net in nets)
    assert zeros.equal(constant) and zeros.equal(function)
