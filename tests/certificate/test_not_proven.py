"""What computes something else than its rules bound is refused by name, and nothing is written to it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worstcase.certificate import Unsupported, certify
from worstcase.certificate.products import slack
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
    return net.b(net.a(x if isinstance(x, Tensor) else 2 * x).relu())


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


@pytest.mark.parametrize("forward", [asks_for_types, casts, casts_at_the_end])
def test_a_network_that_computes_something_else_than_is_traced_is_not_proven(forward: Callable) -> None:
    refused(Own(forward), "Own, which computes something else")


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
