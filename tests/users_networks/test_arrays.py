"""Networks of the kinds that users bring: every weight that meets an input is programmed, or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from answers import attacked, own_labels, run
from torch import nn

from worstcase import Crossbar, attacks, evaluate
from worstcase.evaluation.flags import of_the_network

pytestmark = pytest.mark.usefixtures("short_ensemble")


class Last(nn.Module):
    """A recurrent network's mean output, classified."""

    def __init__(self, cells):
        super().__init__()
        self.cells, self.head = cells, nn.LazyLinear(5)
        self(torch.zeros(1, 7, 6))

    def forward(self, x):
        return self.head(self.cells(x)[0].mean(1))


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.head = kind(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        state = None
        for one in x.unbind(1):
            state = self.cell(one, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Conv1D(nn.Module):
    """As in transformers: its weight is (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class CondConv2d(nn.Module):
    """As in timm: each sample's kernel is a mixture of experts'."""

    def __init__(self):
        super().__init__()
        self.weight, self.route = nn.Parameter(torch.randn(3, 5 * 2 * 9)), nn.Linear(2, 3)

    def forward(self, x):
        kernels = (self.route(x.mean((2, 3))).softmax(1) @ self.weight).view(-1, 2, 3, 3)
        return F.conv2d(x.flatten(0, 1)[None], kernels, groups=len(x))[0].view(len(x), 5, -1).mean(2)


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.both = nn.Bilinear(6, 4, 5)

    def forward(self, x, y):
        return self.both(x, y)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, kdim=6, vdim=4, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.attention(x, x, x[..., :4])[0].mean(1))


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(42, 5))


SERIES = (40, 7, 6)
PLAIN = {
    "lstm": (lambda: Last(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)), SERIES),
    "lstm with projection": (lambda: Last(nn.LSTM(6, 8, batch_first=True, proj_size=4)), SERIES),
    "gru": (lambda: Last(nn.GRU(6, 8, batch_first=True)), SERIES),
    "rnn": (lambda: Last(nn.RNN(6, 8, batch_first=True)), SERIES),
    "lstm cell": (lambda: Cell(nn.LSTMCell), SERIES),
    "gru cell": (lambda: Cell(nn.GRUCell), SERIES),
    "bilinear": (Pairs, ((40, 6), (40, 4))),
    "conv1d of transformers": (lambda: nn.Sequential(Conv1D(16, 6), nn.ReLU(), Conv1D(5, 16)), (40, 6)),
    "condconv of timm": (CondConv2d, (40, 2, 5, 5)),
    "attention": (Attention, SERIES),
    "transformer": (encoder, SERIES),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(6, 5, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        (40, 6, 4),
    ),
}


def inputs_of(shape):
    generator = torch.Generator().manual_seed(1)
    if isinstance(shape[0], tuple):
        return tuple(torch.randn(one, generator=generator) for one in shape)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("make", "shape"), PLAIN.values(), ids=PLAIN.keys())
def test_all_matrices_are_programmed_and_attacked_and_plain_pytorch_computes_the_chip(make, shape):
    torch.manual_seed(0)
    net, inputs = make(), inputs_of(shape)
    crossbar = Crossbar(net, 0.2)
    matrices = {name: p.numel() for name, p in net.named_parameters() if p.ndim > 1}
    assert crossbar.coverage().programmed == matrices == {n: w.numel() for n, w in crossbar.programmed().items()}
    assert crossbar.coverage().digital.keys() == dict(net.named_parameters()).keys() - matrices.keys()
    found, labels = attacked(crossbar, inputs)
    assert found.feasible and found.accuracy < 1 and found.unmoved == [] and crossbar.also_multiplied == []
    assert all(d.any() for d in found.perturbation.values())
    plain = copy.deepcopy(net)
    plain.load_state_dict(crossbar.chip(found.perturbation))
    assert (own_labels(plain, inputs) == labels).double().mean().item() == pytest.approx(found.accuracy)


class At(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(x @ self.w))


def test_a_parameter_that_the_networks_own_code_multiplies_with_is_named_or_flagged():
    torch.manual_seed(0)
    net, x = At(), torch.randn(40, 6)
    labels = own_labels(net, x)
    left = evaluate(Crossbar(net, 0.2), [(x, labels)], attacks=[attacks.FLWC()], progress=False)
    assert any(flag.startswith("w: multiplied with an input, but not programmed") for flag in left.flags)
    assert any("digital and exact are w, head.bias" in flag for flag in left.flags)
    crossbar = Crossbar(net, 0.2, arrays=["w"])
    assert list(crossbar.programmed()) == ["head.weight", "w"] and crossbar.coverage().digital == {"head.bias": 5}
    found = evaluate(crossbar, [(x, labels)], attacks=[attacks.FLWC()], progress=False)
    assert found.attacked_accuracy < left.attacked_accuracy and found.flags == []
    with pytest.raises(
        ValueError, match=r"arrays: no parameter is named 'v'; there are w, head\.weight, head\.bias"
    ):
        Crossbar(net, 0.2, arrays=["v"])


class Own(torch.autograd.Function):
    """A product with a backward pass of its own."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, gradient):
        x, w = ctx.saved_tensors
        return gradient @ w.t(), x.t() @ gradient


class OwnOfSigns(Own):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w.sign())
        return x @ w.sign()


@torch.jit.script
def in_script(x: torch.Tensor, w: torch.Tensor):
    return x @ w


def scripted(x, w):
    return in_script(x, w)


class Multiplies(nn.Module):
    """With something that is no weight of a layer."""

    def __init__(self, holds, by=torch.matmul):
        super().__init__()
        torch.manual_seed(0)
        self.by, self.w, self.head = by, None, nn.Linear(8, 5)
        w = torch.randn(6, 8)
        if holds == "buffer":
            del self.w
            self.register_buffer("w", w)
        elif holds == "bytes":
            self.register_buffer("bytes", w.mul(9).to(torch.int8))
        elif holds == "list":
            self.layers = [nn.Linear(6, 8)]
        else:
            self.w = nn.Parameter(w) if holds == "parameter" else w

    def forward(self, x):
        if self.w is not None:
            return self.head(torch.relu(self.by(x, self.w)))
        return self.head(torch.relu(self.layers[0](x) if hasattr(self, "layers") else x @ (self.bytes / 9)))


NO_LAYERS = {
    "buffer": (Multiplies("buffer"), "w"),
    "integers that a buffer holds": (Multiplies("bytes"), "bytes"),
    "attribute": (Multiplies("attribute"), "a tensor of shape (6, 8)"),
    "layer in a list": (Multiplies("list"), "a tensor of shape (8, 6)"),
    "scripted code": (Multiplies("parameter", scripted), "w"),
    "a function of its own": (Multiplies("parameter", Own.apply), "w"),
    "signs in a function of its own": (Multiplies("parameter", OwnOfSigns.apply), "w"),
}


@pytest.mark.parametrize(("net", "named"), NO_LAYERS.values(), ids=NO_LAYERS.keys())
def test_weights_of_no_layer_are_flagged(net, named):
    crossbar, x = Crossbar(net, 0.2), torch.randn(40, 6)
    crossbar(x)
    assert crossbar.also_multiplied == [named]
    advice = "name them in" if named in dict(net.named_parameters()) else "if devices hold them, make them"
    assert any(f.startswith(f"{named}: ") and f"({advice}" in f for f in of_the_network(crossbar))


@pytest.mark.parametrize("by", [torch.matmul, scripted, Own.apply], ids=["matmul", "scripted", "own"])
def test_named_they_are_attacked_and_plain_pytorch_computes_the_chip(by):
    net, x = Multiplies("parameter", by), torch.randn(40, 6)
    crossbar = Crossbar(net, 0.2, arrays=["w"])
    found, labels = attacked(crossbar, x)
    assert found.accuracy < 1 and found.perturbation["w"].any() and crossbar.also_multiplied == []
    plain = copy.deepcopy(net)
    plain.load_state_dict(crossbar.chip(found.perturbation))
    assert (own_labels(plain, x) == labels).double().mean().item() == pytest.approx(found.accuracy)


def test_signs_within_a_function_of_its_own_are_no_array():
    with pytest.raises(ValueError, match=r"^w: the network multiplies with a tensor that it computes"):
        Crossbar(Multiplies("parameter", OwnOfSigns.apply), 0.2, arrays=["w"])(torch.randn(4, 6))


class Constants(nn.Module):
    """Multiplies with what it makes in each pass, and adds what buffers hold."""

    def __init__(self):
        super().__init__()
        self.head, self.attention = nn.Linear(6, 5), nn.MultiheadAttention(6, 2, batch_first=True)
        self.register_buffer("mask", torch.ones(3, 3).triu(1).bool())
        self.register_buffer("places", torch.randn(3, 6))

    def forward(self, x):
        x = x.unflatten(1, (3, 6)) + self.places
        x, _ = self.attention(x, x, x, attn_mask=self.mask)
        x = torch.baddbmm(self.mask.float()[:, :1], torch.ones(3, 3).tril().expand(len(x), 3, 3), x)
        return self.head(x @ torch.eye(6)).mean(1)


def test_constants_of_a_pass_and_what_is_added_are_no_weights():
    crossbar = Crossbar(Constants(), 0.1)
    crossbar(torch.randn(4, 18))
    assert crossbar.also_multiplied == []


class Learnt(nn.Module):
    """What its layer begins with, or asks for, is learnt."""

    def __init__(self, layer, answer):
        super().__init__()
        self.layer, self.answer, self.start = layer, answer, nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x):
        return self.answer(self.layer, x, self.start.expand(1, len(x), 6))


LEARNT = {
    "gru": (nn.GRU(6, 6, batch_first=True), lambda layer, x, start: layer(x, start)[0][:, -1]),
    "lstm": (nn.LSTM(6, 6, batch_first=True), lambda layer, x, start: layer(x, (start, start))[0][:, -1]),
    "gru cell": (nn.GRUCell(6, 6), lambda layer, x, start: layer(x[:, 0], start[0])),
    "lstm cell": (nn.LSTMCell(6, 6), lambda layer, x, start: layer(x[:, 0], (start[0], start[0]))[0]),
    "attention": (
        nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True),
        lambda layer, x, start: layer(start.transpose(0, 1), x, x)[0][:, 0],
    ),
}


@pytest.mark.parametrize(("layer", "answer"), LEARNT.values(), ids=LEARNT.keys())
def test_learnt_states_and_queries_are_no_weights(layer, answer):
    crossbar = Crossbar(Learnt(layer, answer), 0.1)
    crossbar(torch.randn(4, 7, 6))
    assert crossbar.also_multiplied == []


class Twice(nn.Module):
    """A layer whose weight the network's own code multiplies with again, by another name."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6, bias=False)
        self.out = self.fc.weight

    def forward(self, x):
        return torch.relu(self.fc(x)) @ self.out


class Pair(nn.Module):
    """Two names of one tensor, and no layer."""

    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return torch.relu(x @ self.a) @ self.b


@pytest.mark.parametrize(("make", "named", "array"), [(Twice, ["out"], "fc.weight"), (Pair, ["b", "a"], "b")])
def test_one_tensor_by_two_names_is_one_array_with_one_deviation(make, named, array):
    torch.manual_seed(0)
    net, x = make(), torch.randn(200, 6)
    labels = own_labels(net, x)
    crossbar = Crossbar(net, 0.2, arrays=named)
    assert crossbar.coverage().programmed == {array: 36} and crossbar.coverage().digital == {}
    found = evaluate(crossbar, [(x, labels)], attacks=[attacks.FLWC()], progress=False)
    plain = make()
    plain.load_state_dict(found.worst_chip())
    assert (own_labels(plain, x) == labels).double().mean().item() == pytest.approx(found.attacked_accuracy)


@pytest.mark.parametrize("bits", [None, 4])
def test_a_bias_that_is_an_array_deviates_with_and_without_bits(bits):
    net = nn.Sequential(nn.Linear(4, 3))
    crossbar = Crossbar(net, 0.5, arrays=["*bias"], weight_bits=bits).eval()
    deviation = crossbar.box.zero() | {"0.bias": crossbar.box.sample("vertex")["0.bias"]}
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(crossbar(x, deviation) - crossbar(x), deviation["0.bias"].expand(5, 3))
    assert torch.equal(crossbar.chip(deviation)["0.bias"], crossbar.programmed()["0.bias"] + deviation["0.bias"])


class Tied(nn.Module):
    """A table, and a head that shares its tensor."""

    def __init__(self, *, functional=False):
        super().__init__()
        self.table, self.middle, self.functional = nn.Embedding(9, 6), nn.Linear(6, 6), functional
        if not functional:
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.middle(self.table(ids)).mean(1)
        return F.linear(x, self.table.weight) if self.functional else self.head(x)


def test_a_head_is_told_apart_from_the_table_that_shares_its_tensor():
    torch.manual_seed(0)
    net, ids = Tied(), torch.randint(0, 9, (20, 5))
    crossbar = Crossbar(net, 0.2).eval()
    coverage = crossbar.coverage()
    assert coverage.programmed == {"middle.weight": 36, "head.weight": 54}
    assert coverage.digital == {"table.weight": 54, "middle.bias": 6}
    d = crossbar.box.sample("vertex")
    untied = copy.deepcopy(net)
    untied.head.weight = nn.Parameter(net.head.weight.detach() + d["head.weight"])
    with torch.no_grad():
        untied.middle.weight += d["middle.weight"]
    torch.testing.assert_close(crossbar(ids, d).detach(), run(untied, ids))
    with pytest.raises(ValueError, match=r"head\.weight shares its tensor with table\.weight, which is digital"):
        crossbar.chip(d)
    for functional in (True, False):
        with pytest.raises(ValueError, match=r"table\.weight: the network .* looks numbers up in it"):
            Crossbar(Tied(functional=functional), 0.2, arrays=["table.weight"])(ids)


def test_what_is_digital_is_said_and_flagged():
    net = nn.Sequential(nn.Embedding(1000, 16), nn.Flatten(), nn.Linear(16, 3))
    crossbar = Crossbar(net, 0.05)
    assert crossbar.coverage().share == 48 / 16051 and crossbar.coverage().digital["0.weight"] == 16000
    ids = torch.randint(0, 1000, (16, 1))
    result = evaluate(crossbar, [(ids, own_labels(net, ids))], attacks=[attacks.FLWC()], progress=False)
    assert any("only 0.3% of the values are programmed; digital and exact are 0.weight" in f for f in result.flags)
    assert "48 of 16,051 values are programmed (0.3%)" in str(result)
    assert result.record().parameters == 16051 and result.record().parameters_perturbed == 48


def test_a_digital_tensor_of_two_layers_counts_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].bias = net[0].bias
    assert Crossbar(net, 0.1).coverage().digital == {"0.bias": 4}


@pytest.mark.parametrize("part", [slice(None), slice(2, 3)], ids=["all", "a row"])
def test_parameters_in_the_same_memory_are_refused_by_name(part):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight.data = net[0].weight.data[part]
    for exclude in ([], ["0"]):
        with pytest.raises(ValueError, match=r"^0\.weight and 1\.weight are two tensors in the same memory"):
            Crossbar(net, 0.1, exclude=exclude)


def test_a_buffer_in_the_memory_of_an_array_is_refused_by_name():
    net = nn.Linear(4, 4)
    net.register_buffer("before", net.weight.data)
    with pytest.raises(ValueError, match=r"^weight and before are two tensors in the same memory"):
        Crossbar(net, 0.1)


def renames(net, state, *_):
    """As wrappers do, such as torch's checkpoint_wrapper."""
    for name in [*state]:
        state[f"own.{name}"] = state.pop(name)


def leaves_out(net, state, *_):
    del state["0.weight"]


def test_a_state_dict_with_names_of_its_own_holds_the_chip_and_one_that_leaves_an_array_out_does_not():
    net = nn.Sequential(nn.Linear(4, 4))
    crossbar = Crossbar(net, 0.1)
    chip = crossbar.box.sample("vertex")
    expected = crossbar.chip(chip)["0.weight"]
    net._register_state_dict_hook(renames)
    assert torch.equal(crossbar.chip(chip)["own.0.weight"], expected)
    net = nn.Sequential(nn.Linear(4, 4))
    net._register_state_dict_hook(leaves_out)
    with pytest.raises(ValueError, match=r"^no state dict holds the chip: the network's own has no 0\.weight$"):
        Crossbar(net, 0.1).chip(chip)


def test_parameters_side_by_side_in_memory_are_no_others():
    net, both = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(4, 8)
    net[0].weight.data, net[1].weight.data = both.chunk(2, 1)
    assert len(Crossbar(net, 0.1).programmed()) == 2
