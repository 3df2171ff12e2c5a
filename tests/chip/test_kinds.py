"""Networks that no crossbar holds: one sentence that is true, before any work."""

import pytest
import torch
from torch import nn
from torch.ao import quantization

from worstcase import Crossbar


def plain():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def exported():
    return torch.export.export(plain(), (torch.zeros(2, 4),))


def statically_quantised():
    net = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 4), quantization.DeQuantStub()).eval()
    net.qconfig = quantization.get_default_qconfig()
    prepared = quantization.prepare(net)
    prepared(torch.randn(3, 4))
    return quantization.convert(prepared)


REFUSED = {
    "DataParallel": (lambda: nn.DataParallel(plain()), "give the network inside, net.module$"),
    "a part": (lambda: nn.Sequential(nn.DataParallel(plain())), r"net.0 is wrapped .* inside, net.0.module$"),
    "compiled": (lambda: torch.compile(plain()), "give the network inside, net._orig_mod$"),
    "scripted": (lambda: torch.jit.script(plain()), "scripted or traced, .* give the module before that$"),
    "traced": (lambda: torch.jit.trace(plain(), torch.zeros(1, 4)), "scripted or traced"),
    "exported": (exported, "net must be a torch.nn.Module, not of type ExportedProgram"),
    "a module of it": (lambda: exported().module(), "net is an exported program, .* give the module before that$"),
    "int8, dynamic": (
        lambda: quantization.quantize_dynamic(plain(), {nn.Linear}),
        "net.0, a Linear, computes with integers: give the network before it was converted",
    ),
    "int8, recurrent": (
        lambda: quantization.quantize_dynamic(nn.Sequential(nn.LSTM(4, 8)), {nn.LSTM}),
        "net.0, a LSTM, computes with integers",
    ),
    "int8, static": (statically_quantised, "computes with integers"),
    "meta": (lambda: plain().to("meta"), "0.weight is on the meta device, without values: load weights first"),
    "lazy": (lambda: nn.LazyLinear(3), "^weight has no shape yet: run the network on a batch first"),
    "complex": (
        lambda: nn.Linear(3, 3, dtype=torch.complex64),
        "weight is complex, but devices hold real numbers",
    ),
    "a function": (lambda: torch.relu, "net must be a torch.nn.Module, not of type builtin_function_or_method"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_is_not_supported_is_refused_in_one_sentence(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message) as error:
        Crossbar(make(), 0.1)
    assert "\n" not in str(error.value)


def test_the_network_inside_and_networks_before_conversion_are_taken():
    for net in (
        nn.DataParallel(plain()).module,
        torch.compile(plain())._orig_mod,
        torch.fx.symbolic_trace(plain()),
    ):
        assert Crossbar(net, 0.1)(torch.zeros(2, 4)).shape == (2, 3)
    adds = nn.Sequential(nn.Linear(4, 3))
    adds.add = torch.ao.nn.quantized.FloatFunctional()  # of a network that is ready to be quantised
    assert Crossbar(adds, 0.1).programmed()


def test_weights_that_are_integers_are_refused_and_a_table_of_one_dimension_is_not():
    net = nn.Linear(4, 3)
    net.index = nn.Parameter(torch.arange(3), requires_grad=False)
    assert Crossbar(net, 0.1).programmed()
    net.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"weight is torch.int8: give the network before it was quantised"):
        Crossbar(net, 0.1)
