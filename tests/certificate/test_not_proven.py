"""What computes something else than its rules bound is refused by name, and nothing is written to it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worstcase.certificate import Unsupported, certify, interval
from worstcase.certificate.interval import IntervalBounds
from worstcase.certificate.products import Interval, slack
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.memory_layout import channels_last_is_quicker


class Own(nn.Module):
    """Two layers, and a forward of its own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.own = nn.Linear(4, 8), nn.Linear(8, 3), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def asks_for_types(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x if type(x) is Tensor else 2 * x).relu())


def casts(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = net.a(x)
    return net.b(x.relu() * torch.ones(8))


def casts_at_the_end(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.b(net.a(x).relu())


def refused(net: nn.Module, named: str, *, x: Tensor | None = None, **options: Any) -> None:
    x = torch.randn(6, 4) if x is None else x
    with pytest.raises(Unsupported, match=named):
        certify(Crossbar(net, 0.01, **options), [(x, torch.zeros(len(x), dtype=torch.long))])


def casts_behind_a_mask(net: Any, x: Tensor) -> Tensor:
    return casts_at_the_end(net, x).float() + torch.tensor([0, 0, -1e9])


@pytest.mark.parametrize("forward", [asks_for_types, casts, casts_at_the_end, casts_behind_a_mask])
def test_a_network_that_computes_something_else_than_is_traced_is_not_proven(forward: Callable) -> None:
    refused(Own(forward), "Own, which computes something else")


def test_a_question_for_tensors_is_answered_as_the_network_would() -> None:
    net, x = Own(lambda net, x: net.b(net.a(x if isinstance(x, Tensor) else 2 * x).relu())), torch.randn(6, 4)
    plain = Own(lambda net, x: net.b(net.a(x).relu()))
    plain.load_state_dict(net.state_dict())
    labels = net(x).argmax(1)
    found, expected = (certify(Crossbar(one, 0.003), [(x, labels)]).certified for one in (net, plain))
    assert found.any() and torch.equal(found, expected)


def by_name(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.a(x).relu(), dict(net.named_parameters())["b.weight"].view(3, 8), net.b.bias)


def by_number(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.a(x).relu(), next(net.b.parameters())[:, :], net.b.bias)


def by_state(net: Any, x: Tensor) -> Tensor:
    return F.linear(net.a(x).relu(), net.state_dict()["b.weight"].view(3, 8), net.b.bias)


def by_largest(net: Any, x: Tensor) -> Tensor:
    y = net.b(net.a(x).relu())
    return y if next(net.b.parameters()).abs().max() < 0.36 else -y


@pytest.mark.parametrize("forward", [by_name, by_number, by_state, by_largest])
def test_what_is_computed_from_a_parameter_while_it_is_traced_is_no_constant(forward: Callable) -> None:
    refused(Own(forward), r"Own cannot be traced by torch.fx \(it computes with [ab].weight itself")


def asks_large_inputs(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(-x if torch.is_tensor(x) and x.abs().max() > 3 else x).relu())


def asks_large_outputs(net: Any, x: Tensor) -> Tensor:
    h = net.a(x)
    return net.b(-h if isinstance(h, Tensor) and h.abs().max() > 100 else h)


@pytest.mark.parametrize("forward", [asks_large_inputs, asks_large_outputs])
def test_control_flow_behind_a_question_for_tensors_is_not_proven(forward: Callable) -> None:
    refused(Own(forward), "cannot be traced by torch.fx .symbolically traced variables", x=torch.rand(6, 4))


@pytest.mark.parametrize("name", ["iadd", "isub", "imul", "itruediv"])
def test_what_is_changed_in_place_by_an_operator_is_still_used(name: str) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = skip = net.a(x)
        getattr(operator, name)(h, 1 + (x.mean(1, keepdim=True) - 9).relu())
        return net.b(skip)

    refused(Own(forward), f"{name}, which changes in place what is used again")


@pytest.mark.parametrize(
    "same",
    ["float", "contiguous", "detach", lambda h: F.dropout(h, training=False)],
    ids=["float", "contiguous", "detach", "dropout"],
)
def test_what_may_be_the_same_tensor_is_changed_with_it(same: Any) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        y = getattr(h, same)() if isinstance(same, str) else same(h)
        y -= 1
        return net.b(h)

    refused(Own(forward), "isub, which changes in place what is used again")


def test_a_copy_may_be_changed_in_place() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        size, y = h.size(1), h.clone()
        y -= 1
        return net.b(h + y.view(-1, size))

    torch.manual_seed(0)
    net, x = Own(forward), torch.randn(20, 4)
    assert certify(Crossbar(net, 0.001), [(x, net(x).argmax(1))]).certified.any()


def test_the_places_of_a_maximum_are_not_proven() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.b = nn.Linear(4, 8), nn.MaxPool1d(2, return_indices=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            values, places = self.pool(self.a(x)[:, None])
            return self.b(torch.cat([values, 1.0 * places], 2).flatten(1))

    refused(Places(), "pool .MaxPool1d. with return_indices")


@pytest.mark.parametrize("end", [nn.LogSoftmax(1), lambda y: F.log_softmax(y, 1), lambda y: y.softmax(1)])
def test_a_softmax_at_the_end_can_be_left_out(end: Any) -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.end = nn.Linear(4, 3), end

        def forward(self, x: Tensor) -> Tensor:
            return self.end(self.a(x))

    refused(Ends(), r"(?i)softmax.* \(at the end, leave it out: the answers stay the same\)")


def test_hooks_on_all_modules_are_not_proven() -> None:
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: -output)
    try:
        refused(nn.Linear(4, 3), "hooks on all modules")
    finally:
        hook.remove()


@pytest.mark.parametrize("first", [torch.ones(1, 4), torch.ones(2, 4)])
def test_samples_that_meet_only_in_a_later_batch_are_not_proven(first: Tensor) -> None:
    net, later = Own(lambda net, x: net.b(net.a(x - x.mean(0)))), torch.randn(6, 4)
    batches = [(x, torch.zeros(len(x), dtype=torch.long)) for x in (first, later)]
    with pytest.raises(Unsupported, match="answers that depend on the other samples of a batch"):
        certify(Crossbar(net, 0.01), batches)


def test_linear_bounds_want_samples_first() -> None:
    """As many times as samples, so that no shape tells them apart."""
    torch.manual_seed(0)
    net = nn.Sequential(TimeFirst(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 5, 4)
    labels = net(x).argmax(1)
    with pytest.raises(Unsupported, match="permute, after which samples do not come first, by linear bounds"):
        certify(Crossbar(net, 0.01), [(x, labels)], "linear")
    assert certify(Crossbar(net, 0.001), [(x, labels)]).certified.any()


class TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(1, 0, 2).mean(0)


def test_a_corner_of_the_box_that_breaks_a_bound_ends_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong: it forgets the deviations of the first layer's outputs."""
    net, x = Own(lambda net, x: net.b(net.a(x).relu())), torch.randn(6, 4)
    monkeypatch.setitem(interval.METHODS, "relu", lambda f, h: Interval.of((h.low + h.high).div(2).relu()))
    with pytest.raises(Unsupported, match="Own, of which a corner of the box breaks the bounds"):
        certify(Crossbar(net, 0.1), [(x, net(x).argmax(1))])


def test_whatever_else_a_rule_raises_only_ends_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(interval.METHODS, "relu", lambda f, h: 1 / 0)
    refused(Own(lambda net, x: net.b(net.a(x).relu())), "Own: division by zero")


@pytest.mark.parametrize("thg", [0.0, 0.01])
@pytest.mark.parametrize("beside", [torch.arange(3), torch.ones(2, dtype=torch.bool), torch.zeros(0)])
def test_outputs_of_any_kind_beside_the_logits_are_no_failure(beside: Tensor, thg: float) -> None:
    torch.manual_seed(0)
    net, x = Own(lambda net, x: (net.b(net.a(x)), beside)), torch.randn(6, 4)
    assert certify(Crossbar(net, thg), [(x, net(x)[0].argmax(1))]).accuracy > 0.5


def test_a_batch_may_be_empty_and_a_sample_one_number() -> None:
    torch.manual_seed(0)
    for net, x in ((nn.Linear(4, 3), torch.randn(20, 4)), (nn.Embedding(9, 3), torch.randint(9, (20,)))):
        net = nn.Sequential(net, nn.Linear(3, 3))
        labels = net(x).argmax(1)
        found = certify(Crossbar(net, 0.001), [(x[:0], labels[:0]), (x, labels)]).certified
        assert len(found) == 20 and found.any()


@pytest.mark.parametrize("beta", [1e-4, 0.01, 1.0])
def test_softplus_rounds_more_where_it_is_flat(beta: float) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(16, 64), nn.Softplus(beta)), torch.randn(64, 16)
    crossbar = Crossbar(net.eval(), 1e-9)
    bounds = IntervalBounds(crossbar).run(Interval.of(x))
    with torch.no_grad():
        for rows in (x.split(1), x.split(7), [x]):
            y = torch.cat([crossbar(part) for part in rows])
            assert (bounds.low <= y).all() and (y <= bounds.high).all()


@pytest.mark.parametrize(("shared", "bits"), [("weight", None), ("weight", 2), ("bias", 2)])
def test_a_tensor_that_a_layer_left_out_shares_is_not_proven(shared: str, bits: int | None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    setattr(net[2], shared, getattr(net[0], shared))
    refused(net, f"2.{shared}, which is digital but shares", exclude=["2"], weight_bits=bits)


def test_a_network_under_autocast_is_not_proven() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        refused(nn.Linear(4, 3), "weights of autocast")


def test_a_layer_whose_forward_is_replaced_is_not_proven() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    net[1].forward = torch.sin
    refused(net, "1 .ReLU. with a forward set on it")


def test_an_average_with_a_divisor_below_0_is_not_proven() -> None:
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2, divisor_override=-4), nn.Flatten(), nn.Linear(8, 3)
    refused(nn.Sequential(*layers), "divisor below 0", x=torch.randn(6, 1, 6, 6))


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="since PyTorch 2.9")
@pytest.mark.parametrize("backend", ["mkldnn.matmul", "mkldnn.conv", "cuda.matmul"])
def test_the_precision_of_each_backend_is_read(backend: str) -> None:
    exact, where = slack(9, torch.zeros(1)), operator.attrgetter(backend)(torch.backends)
    before = where.fp32_precision
    try:
        where.fp32_precision = "tf32"
        certify(Crossbar(nn.Linear(4, 3), 0.01), [(torch.randn(6, 4), torch.zeros(6).long())])
        assert slack(9, torch.zeros(1)) > exact
        if backend.startswith("mkldnn"):
            where.fp32_precision = "bf16"
            refused(nn.Linear(4, 3), "fp32_precision='bf16'")
    finally:
        where.fp32_precision = before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="since PyTorch 2.9")
def test_the_precision_of_cudnn_is_read() -> None:
    of = torch.backends.cudnn.conv
    before = of.fp32_precision
    try:
        of.fp32_precision = "ieee"
        channels_last_is_quicker("cuda", torch.float32)
    finally:
        of.fp32_precision = before


def counts(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return net.b(net.a(x).relu())


def writes(net: Any, x: Tensor) -> Tensor:
    net.calls.mul_(0).add_(1)
    return net.b(net.a(x).relu()) * net.calls


def moves_a_parameter(net: Any, x: Tensor) -> Tensor:
    return net.b(net.a(x).relu()) + net.shift.detach().clamp_(0, 1)


@pytest.mark.parametrize("forward", [counts, writes, moves_a_parameter, "max_norm"])
def test_nothing_is_written_to_the_network(forward: Any) -> None:
    torch.manual_seed(0)
    net: nn.Module
    if forward == "max_norm":
        net, x = nn.Sequential(nn.Embedding(9, 4, max_norm=0.3), nn.Flatten(), nn.Linear(8, 3)), torch.ones(6, 2)
        x = x.long()
    else:
        net, x = Own(forward), torch.randn(6, 4)
        net.register_buffer("calls", torch.zeros(()))
        net.shift = nn.Parameter(torch.full((3,), 2.0))
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with suppress(Unsupported):
        certify(Crossbar(net, 0.01), [(x, torch.zeros(6, dtype=torch.long))])
    assert net.training and all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_are_no_class_are_refused(label: int) -> None:
    batches = [(torch.randn(6, 4), torch.full((6,), of)) for of in (0, label)]
    with pytest.raises(ValueError, match=f"each label must be 0 to 2, but one is {label}"):
        certify(Crossbar(nn.Linear(4, 3), 0.01), batches)
