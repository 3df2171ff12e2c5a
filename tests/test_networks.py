"""Networks of the kinds that users bring: attacked where they multiply, or refused."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from worstcase import Crossbar, attacks, evaluate
from worstcase.attacks.passes import accuracy
from worstcase.chip.crossbar import evaluating
from worstcase.methods import PGDAT, ATrice, Trice, UniversalAT, Vanilla

pytestmark = pytest.mark.usefixtures("short_ensemble")


class UsedWeights(TorchFunctionMode):
    """Notes the second argument of each linear layer and convolution that runs."""

    def __init__(self):
        super().__init__()
        self.used = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.linear, F.conv1d, F.conv2d, torch.conv1d, torch.conv2d) and len(args) > 1:
            self.used.append(args[1].detach().clone())
        return function(*args, **(kwargs or {}))


def used_weights(run):
    with UsedWeights() as mode, torch.no_grad():
        run()
    return mode.used


def run(net, inputs):
    with torch.no_grad():
        out = net.eval()(*inputs) if isinstance(inputs, tuple) else net.eval()(inputs)
    return out[0] if isinstance(out, tuple) else out


def own_labels(net, inputs):
    """What the network answers itself: it is right everywhere as programmed."""
    return run(net, inputs).argmax(1)


def attacked(crossbar, inputs, attack=None, **options):
    """What an attack finds of a network that is right everywhere."""
    labels = own_labels(copy.deepcopy(crossbar.net), inputs)
    return (attack or attacks.FLWC(steps=5))(crossbar, [(inputs, labels)], progress=False, **options), labels


# ---- every weight that meets an input in a matrix product


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
    with pytest.raises(ValueError, match=r"table\.weight: the network .* looks numbers up in it"):
        Crossbar(Tied(functional=True), 0.2, arrays=["table.weight"])(ids)


def test_what_is_digital_is_said_and_flagged():
    net = nn.Sequential(nn.Embedding(1000, 16), nn.Flatten(), nn.Linear(16, 3))
    crossbar = Crossbar(net, 0.05)
    assert crossbar.coverage().share == 48 / 16051 and crossbar.coverage().digital["0.weight"] == 16000
    ids = torch.randint(0, 1000, (16, 1))
    result = evaluate(crossbar, [(ids, own_labels(net, ids))], attacks=[attacks.FLWC()], progress=False)
    assert any("only 0.3% of the values are programmed; digital and exact are 0.weight" in f for f in result.flags)
    assert "48 of 16,051 values are programmed (0.3%)" in str(result)
    assert result.record().parameters == 16051 and result.record().parameters_perturbed == 48


# ---- the tensor that the layer multiplies with


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Binary(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight + (self.weight.sign() - self.weight).detach(), self.bias)


class BinaryByFunction(nn.Linear):
    def forward(self, x):
        return F.linear(x, weight=Sign.apply(self.weight), bias=self.bias)


class BinaryByAt(nn.Linear):
    def forward(self, x):
        return x @ Sign.apply(self.weight).t() + self.bias


class DoReFa(nn.Linear):
    """Four bits (Zhou et al., 2016)."""

    def forward(self, x):
        w = self.weight.tanh()
        w = w / (2 * w.abs().max()) + 0.5
        return F.linear(x, 2 * (w + ((w * 15).round() / 15 - w).detach()) - 1, self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, w, self.bias)


class Merged(nn.Linear):
    """LoRA, merged in each pass."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(2, inputs) / 4), nn.Parameter(torch.randn(outputs, 2) / 4)

    def forward(self, x):
        return F.linear(x, self.weight + self.b @ self.a, self.bias)


def pruned(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)
    return layer


def qat(*layers):
    from torch.ao import quantization

    net = nn.Sequential(*layers).train()
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    net = quantization.prepare_qat(net)
    net(torch.randn(99, 12, generator=torch.Generator().manual_seed(0)))
    return net


def two(layer):
    return nn.Sequential(layer(12, 32), nn.ReLU(), layer(32, 4))


def around(change):
    return lambda: two(lambda *size: change(nn.Linear(*size)))


COMPUTED = {
    "binary": lambda: two(Binary),
    "binary by an autograd function": lambda: two(BinaryByFunction),
    "binary by @": lambda: two(BinaryByAt),
    "dorefa": lambda: two(DoReFa),
    "lora, merged": lambda: two(Merged),
    "weight norm": around(parametrizations.weight_norm),
    "weight norm, old": around(nn.utils.weight_norm),
    "spectral norm": around(parametrizations.spectral_norm),
    "spectral norm, old": around(nn.utils.spectral_norm),
    "orthogonal": around(parametrizations.orthogonal),
    "pruned": around(pruned),
    "quantisation-aware": lambda: qat(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4)),
    "standardised": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2, 2)), Standardised(3, 32, 2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    ),
}
every_computed = pytest.mark.parametrize("make", COMPUTED.values(), ids=COMPUTED.keys())


@every_computed
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_tensor_that_multiplies_is_programmed_and_stays_in_its_box(make):
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    state = {name: t.clone() for name, t in net.state_dict().items()}
    before = used_weights(lambda: net(x)) if make is not COMPUTED["binary by @"] else []
    net.load_state_dict(state)  # observers have seen the inputs
    crossbar = Crossbar(net, 0.1).eval()
    programmed = list(crossbar.programmed().values())
    for own, held in zip(before, programmed, strict=bool(before)):
        assert torch.equal(own, held)
    labels = own_labels(net, x)
    net.load_state_dict(state)
    found = attacks.FLWC(steps=5)(crossbar, [(x, labels)], progress=False)
    assert found.clean_accuracy == 1 and found.accuracy < 1 and all(d.any() for d in found.perturbation.values())
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items()), "the network is as it was"
    after = used_weights(lambda: crossbar(x, found.perturbation)) if before else []
    for held, used, d in zip(programmed, after, found.perturbation.values(), strict=bool(before)):
        torch.testing.assert_close(used, held + d, rtol=0, atol=1e-6)
        assert (used - held).abs().max() / held.abs().max() <= 0.1 * (1 + 1e-5)
    assert accuracy(crossbar, [(x, labels)], found.perturbation) == found.accuracy


def test_a_binary_network_has_signs_in_its_devices():
    crossbar = Crossbar(Binary(12, 4), 0.25)
    assert crossbar.programmed()["weight"].unique().tolist() == [-1, 1] and crossbar.bound()["weight"] == 0.25
    with pytest.raises(ValueError, match="no state dict holds the chip: the layer of weight computes what it"):
        crossbar.chip(crossbar.box.zero())


def test_bits_come_on_top_of_what_the_layer_computes():
    torch.manual_seed(0)
    layer, x = parametrizations.weight_norm(nn.Linear(12, 4, bias=False)), torch.randn(5, 12)
    crossbar = Crossbar(layer, 0.1, weight_bits=3).eval()
    (held,) = crossbar.programmed().values()
    assert len(held.abs().unique()) <= 8
    torch.testing.assert_close(crossbar(x), x @ held.T)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "method",
    [Vanilla, Trice, partial(ATrice, alpha=0.5), partial(PGDAT, steps=2), partial(UniversalAT, members=2)],
)
@every_computed
def test_methods_train_what_the_layer_computes_from(method, make):
    torch.manual_seed(0)
    trained = method(Crossbar(make().train(), 0.1), num_classes=4)
    trained.training_loss(torch.randn(40, 12), torch.arange(40) % 4).backward()
    moved = [name for name, p in trained.crossbar.net.named_parameters() if p.grad is not None and p.grad.any()]
    assert len(moved) >= 4 or make is COMPUTED["binary by @"]
    trained.on_after_backward()


class Elsewhere(nn.Module):
    """Its own code multiplies with what it makes of a layer's weight."""

    def __init__(self, change):
        super().__init__()
        self.fc, self.change = nn.Linear(12, 4), change

    def forward(self, x):
        return F.linear(x, self.change(self.fc.weight, x), self.fc.bias)


@pytest.mark.parametrize(
    "change",
    [
        lambda w, x: w.tanh(),
        lambda w, x: Sign.apply(w),
        lambda w, x: w * x.mean(),
        lambda w, x: torch.stack([w, w]).sum(0),
    ],
    ids=["tanh", "sign", "modulated", "summed"],
)
def test_what_is_computed_elsewhere_is_refused_by_name(change):
    with pytest.raises(ValueError, match=r"^fc\.weight: the network multiplies with a tensor that it computes"):
        attacks.FLWC()(
            Crossbar(Elsewhere(change), 0.1), [(torch.randn(8, 12), torch.arange(8) % 4)], progress=False
        )


def test_a_weight_that_is_only_rearranged_is_no_other_weight():
    net = Elsewhere(lambda w, x: torch.cat(w.t().contiguous().t().chunk(2)))
    assert attacked(Crossbar(net, 0.3), torch.randn(40, 12))[0].accuracy < 1


def test_a_tensor_that_differs_from_pass_to_pass_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight + torch.randn_like(self.weight), self.bias)

    with pytest.raises(ValueError, match=r"^0\.weight: the network multiplies with another tensor"):
        Crossbar(nn.Sequential(Noisy(12, 4)), 0.1)(torch.randn(8, 12))


# ---- attacks that the network's manners do not fool


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        return self.head(x.sub_(0.5).div_(0.3))


@pytest.mark.parametrize("attack", [attacks.MonteCarlo(instances=16), attacks.FLWC(), attacks.Ensemble()])
def test_inputs_that_are_changed_in_place_are_the_same_for_every_chip(attack):
    torch.manual_seed(0)
    net, x = InPlace(), torch.rand(50, 20)
    before, labels = x.clone(), own_labels(net, x.clone())
    assert attack(Crossbar(net, 1e-9), [(x, labels)], progress=False).accuracy == 1
    assert torch.equal(x, before)


class Keeps(nn.Module):
    """Writes the largest input that it saw into a buffer, also in eval mode."""

    def __init__(self, *, anew):
        super().__init__()
        self.head, self.anew = nn.Linear(20, 5), anew
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x):
        largest = torch.maximum(self.largest, self.head(x).abs().max())
        if self.anew:
            self.largest = largest
        else:
            self.largest.copy_(largest.detach())
        return self.head(x) / self.largest - self.largest * torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("anew", [True, False])
def test_what_a_pass_writes_into_buffers_does_not_reach_the_next_chip(anew):
    torch.manual_seed(0)
    net, x = Keeps(anew=anew), torch.randn(250, 20)
    labels = own_labels(copy.deepcopy(net), x)
    found = attacks.MonteCarlo(instances=8, sampler="vertex")(Crossbar(net, 0.3), [(x, labels)], progress=False)
    assert found.clean_accuracy == 1 and net.largest == 0
    worst = copy.deepcopy(net)
    worst.load_state_dict(Crossbar(net, 0.3).chip(found.perturbation))
    assert (own_labels(worst, x) == labels).double().mean().item() == pytest.approx(found.accuracy)
    assert found.accuracy == found.distribution["minimum"]


def test_monte_carlo_scores_the_batches_that_the_score_does():
    """A batch norm without running statistics: an answer depends on the other samples."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(20, 30), nn.BatchNorm1d(30, track_running_stats=False), nn.ReLU(), nn.Linear(30, 5)
    )
    x = torch.randn(500, 20) * torch.linspace(0.1, 3, 500)[:, None]
    found = attacks.MonteCarlo(instances=8)(Crossbar(net, 1e-9), [(x, own_labels(net, x))], progress=False)
    assert found.distribution["accuracies"] == [1.0] * 8


class Checkpointed(nn.Module):
    def __init__(self, body, head, reentrant):
        super().__init__()
        self.body, self.head, self.reentrant = body, head, reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.head(self.body(x))
        return self.head(checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_attacked_and_trained_as_any_others(reentrant):
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU()), nn.Linear(48, 4)
    x, labels = torch.randn(64, 12), torch.randint(4, (64,))
    found, gradients = [], []
    for way in (None, reentrant):
        crossbar = Crossbar(Checkpointed(*parts, way), 0.1)
        found.append(attacks.FLWC(steps=3)(crossbar, [(x, labels)], progress=False))
        method = UniversalAT(crossbar, num_classes=4)
        method.training_loss(x, labels).backward()
        gradients.append([p.grad.clone() for p in crossbar.net.parameters()])
        crossbar.net.zero_grad()
    assert found[0].history == found[1].history and found[1].unmoved == []
    torch.testing.assert_close(*gradients)


def test_arrays_without_a_gradient_are_named_in_a_flag():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.unused = nn.Linear(12, 48), nn.Linear(48, 4), nn.Linear(48, 4)

        def forward(self, x):
            with torch.no_grad():
                x = self.body(x).relu()
            return self.head(x)

    torch.manual_seed(0)
    net, x = Cut(), torch.randn(64, 12)
    result = evaluate(Crossbar(net, 0.1), [(x, own_labels(net, x))], attacks=[attacks.FLWC()], progress=False)
    assert result.attacks[0].unmoved == ["body.weight", "unused.weight"]
    (flag,) = [flag for flag in result.flags if "arrays-that-stand-still" in flag]
    assert "no gradient ever reached body.weight, unused.weight" in flag
    with torch.no_grad():
        net.head.weight.zero_()
    result = evaluate(Crossbar(net, 0.1), [(x, torch.ones(64).long())], attacks=[attacks.FLWC()], progress=False)
    assert any(flag.startswith("head.weight: all weights are zero") for flag in result.flags)


def test_a_network_without_any_gradient_is_no_error():
    class Cut(nn.Linear):
        def forward(self, x):
            return super().forward(x).detach()

    net, x = Cut(12, 4), torch.randn(8, 12)
    assert attacked(Crossbar(net, 0.1), x)[0].vanished == 1


def test_a_network_that_does_not_repeat_itself_is_refused():
    class Dropping(nn.Linear):
        def forward(self, x):
            return super().forward(F.dropout(x))

    with pytest.raises(ValueError, match=r"^Dropping gives two answers to the same inputs in eval mode \(dropout"):
        accuracy(Crossbar(Dropping(20, 5), 0.1), [(torch.randn(8, 20), torch.zeros(8).long())])


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        return torch.full((8,), float(i)).mul(torch.rand(())), i % 3


def whole():
    return TensorDataset(torch.randn(64, 8), torch.arange(64) % 3)


@pytest.mark.parametrize("attack", [attacks.FLWC(), attacks.Ensemble(), attacks.MonteCarlo(instances=2)])
def test_a_reference_set_that_changes_is_refused(attack):
    crossbar = Crossbar(nn.Linear(8, 3), 0.05)
    for loader in (DataLoader(Augmented(), 32), DataLoader(whole(), 28, shuffle=True, drop_last=True)):
        with pytest.raises(ValueError, match="the reference set changes from pass to pass"):
            attack(crossbar, loader, progress=False)
    attack(crossbar, DataLoader(whole(), 28, shuffle=True), progress=False)  # only in another order


def test_a_dict_may_hold_what_no_sample_has():
    class Scaled(nn.Linear):
        def forward(self, x, scale):
            return super().forward(x) * scale

    net, x, scale = Scaled(8, 3), torch.randn(64, 8), torch.tensor(2.0)
    labels = (x @ net.weight.T + net.bias).argmax(1)
    data = DataLoader([{"x": x, "scale": scale, "labels": labels}], batch_size=None)
    for attack in (attacks.FLWC(), attacks.Ensemble(), attacks.MonteCarlo(instances=2)):
        assert attack(Crossbar(net, 0.3), data, progress=False).clean_accuracy == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_digits_stay_in_the_box_after_the_cast(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).to(dtype)
    x = torch.randn(32, 16, dtype=dtype)
    before = used_weights(lambda: net(x))
    crossbar = Crossbar(net, 0.02).eval()
    found, _ = attacked(crossbar, x, attacks.FLWC(steps=3))
    after = used_weights(lambda: crossbar(x, found.perturbation))
    for w, used in zip(before, after, strict=True):
        assert ((used.double() - w.double()).abs().max() / w.double().abs().max()).item() <= 0.02


# ---- any task


def test_pixels_and_tokens_are_decisions():
    torch.manual_seed(0)
    for net, x in (
        (nn.Conv2d(1, 3, 3, padding=1), torch.randn(16, 1, 8, 8)),
        (nn.Linear(6, 9), torch.randn(16, 5, 6)),
    ):
        logits = run(net, x)
        labels = logits.argmax(1 if x.ndim == 4 else 2)
        result = evaluate(Crossbar(net, 0.3), [(x, labels)], diagnosis="full", heldout=True, progress=False)
        assert 0 <= result.attacked_accuracy < result.clean_accuracy == 1
        assert result.samples == 16 and result.record().decisions == labels.numel()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1)
        return {"logits": self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))}


def test_batches_are_dicts_and_tuples():
    torch.manual_seed(0)
    net, ids, mask = Model().eval(), torch.randint(0, 50, (32, 7)), torch.ones(32, 7)
    labels = net(ids, mask)["logits"].argmax(1)
    by_name = [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for i, m, y in zip(ids.split(10), mask.split(10), labels.split(10), strict=True)
    ]
    in_order = [((batch["input_ids"], batch["attention_mask"]), batch["labels"]) for batch in by_name]
    chosen = [attacks.FLWC(), attacks.LWC(epochs=2), attacks.Ensemble(), attacks.MonteCarlo(instances=3)]
    results = [
        evaluate(Crossbar(net, 0.5), batches, chosen, heldout=True, progress=False)
        for batches in (by_name, in_order)
    ]
    assert results[0].clean_accuracy == 1 and results[0].attacked_accuracy < 1
    for one, other in zip(results[0].attacks, results[1].attacks, strict=True):
        assert one.history == other.history and one.heldout_accuracy == other.heldout_accuracy
    assert results[0].diagnosis == results[1].diagnosis
    trained = UniversalAT(Crossbar(net, 0.1), num_classes=3)
    assert trained.training_step(by_name[0], 0) == trained.training_step(in_order[0], 0)


@pytest.mark.parametrize("outputs", [1, 4])
def test_one_logit_for_each_label(outputs):
    torch.manual_seed(0)
    net, x = nn.Linear(6, outputs), torch.randn(64, 6)
    labels = (run(net, x) > 0).float()
    for attack in (attacks.MonteCarlo(instances=4), attacks.FLWC(), attacks.Ensemble()):
        result = evaluate(Crossbar(net, 0.3), [(x, labels)], attacks=[attack], progress=False)
        assert result.clean_accuracy == 1 and 0 <= result.attacked_accuracy < 1
    with evaluating(net):
        assert Vanilla(Crossbar(net, 0.3), num_classes=2).training_loss(x, labels).isfinite()


@pytest.mark.parametrize(
    "labels", [torch.rand(16, 3), torch.arange(16) % 3 + 1, torch.randint(0, 3, (16, 1)).float()]
)
def test_other_labels_are_one_clear_error_for_every_attack(labels):
    for attack in (attacks.MonteCarlo(instances=2), attacks.FLWC(), attacks.Ensemble(rounds=1)):
        with pytest.raises(ValueError, match="label"):
            attack(Crossbar(nn.Linear(5, 3), 0.05), [(torch.randn(16, 5), labels)], progress=False)
