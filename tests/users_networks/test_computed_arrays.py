"""Layers that compute what they multiply with: that tensor is in devices, never the parameter behind it."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from answers import attacked, own_labels, used_weights
from torch import nn
from torch.nn.utils import parametrizations, prune

from worstcase import Crossbar, attacks
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.flags import of_the_network
from worstcase.methods import PGDAT, ATrice, Trice, UniversalAT, Vanilla

pytestmark = pytest.mark.usefixtures("short_ensemble")


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


def qat(*layers, fused=()):
    from torch.ao import quantization

    net = nn.Sequential(*layers).train()
    if fused:
        quantization.fuse_modules_qat(net, [list(fused)], inplace=True)
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
    "quantisation-aware, with batch norm": lambda: qat(
        nn.Unflatten(1, (3, 2, 2)),
        nn.Conv2d(3, 32, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 4),
        fused=["1", "2", "3"],
    ),
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
    assert crossbar.also_multiplied == []


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


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.__setitem__(2, nn.Linear(32, 4)),
        lambda net: parametrizations.weight_norm(net[2]),
        lambda net: pruned(net[2]),
        lambda net: nn.utils.parametrize.remove_parametrizations(net[0], "weight"),
    ],
    ids=["another layer", "weight norm", "pruned", "weight norm removed"],
)
def test_a_layer_that_is_changed_after_the_crossbar_was_made_is_named(change):
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(12, 32)), nn.ReLU(), nn.Linear(32, 4))
    crossbar, x = Crossbar(net, 0.1), torch.randn(40, 12)
    crossbar(x)
    change(net)
    with pytest.raises(ValueError, match=r"^[02]\.weight: .* make a new Crossbar of the network$"):
        accuracy(crossbar, [(x, torch.arange(40) % 4)], crossbar.box.zero())


class Cast(nn.Linear):
    def forward(self, x):
        return F.linear(x.bfloat16(), self.weight.bfloat16(), self.bias.bfloat16()).float()


def test_a_weight_that_is_cast_to_fewer_digits_deviates_after_the_cast():
    torch.manual_seed(0)
    net, x = two(Cast).eval(), torch.randn(40, 12)
    before = used_weights(lambda: net(x))
    crossbar = Crossbar(net, 1e-3)
    found, _ = attacked(crossbar, x)
    after = used_weights(lambda: crossbar(x, found.perturbation))
    for w, used in zip(before, after, strict=True):
        assert ((used.double() - w.double()).abs().max() / w.double().abs().max()).item() <= 1e-3


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
        lambda w, x: w.data.sign(),
        lambda w, x: (w * torch.ones(12)).detach(),
        torch.no_grad()(lambda w, x: w.round()),
        lambda w, x: w.half().float(),
    ],
    ids=[
        "tanh",
        "sign",
        "modulated",
        "summed",
        "sign of data",
        "masked and detached",
        "rounded without a gradient",
        "cast to fewer digits",
    ],
)
def test_what_is_computed_elsewhere_is_refused_by_name(change):
    with pytest.raises(ValueError, match=r"^fc\.weight: the network multiplies with a tensor that it computes"):
        attacks.FLWC()(
            Crossbar(Elsewhere(change), 0.1), [(torch.randn(8, 12), torch.arange(8) % 4)], progress=False
        )


class Multiplies(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return F.linear(x, w.sign())

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient


def test_what_an_autograd_function_computes_elsewhere_is_refused_by_name():
    class Binarised(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, x):
            return Multiplies.apply(x, self.fc.weight)

    with pytest.raises(ValueError, match=r"^fc\.weight: the network multiplies with a tensor that it computes"):
        Crossbar(Binarised(), 0.1)(torch.randn(8, 12))


def test_a_weight_that_is_cast_to_more_digits_is_no_other_weight():
    net = Elsewhere(lambda w, x: w.double().t().t()).double()
    net.fc.weight.data = net.fc.weight.data.float()
    assert attacked(Crossbar(net, 0.3), torch.randn(40, 12).double())[0].accuracy < 1


def test_a_weight_that_is_only_rearranged_is_no_other_weight():
    net = Elsewhere(lambda w, x: torch.cat(w.t().contiguous().t().chunk(2)))
    assert attacked(Crossbar(net, 0.3), torch.randn(40, 12))[0].accuracy < 1


@pytest.mark.parametrize("change", [lambda w, x: w.detach(), lambda w, x: w.data[:].view(2, 2, 12).flatten(0, 1)])
def test_a_weight_that_is_only_detached_is_no_other_weight(change):
    crossbar, x = Crossbar(Elsewhere(change), 0.3), torch.randn(40, 12)
    chip = crossbar.box.sample("vertex")
    torch.testing.assert_close(crossbar(x, chip) - crossbar(x), x @ chip["fc.weight"].T)


def test_a_tensor_that_differs_from_pass_to_pass_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight + torch.randn_like(self.weight), self.bias)

    with pytest.raises(ValueError, match=r"^0\.weight: the network multiplies with another tensor"):
        Crossbar(nn.Sequential(Noisy(12, 4)), 0.1)(torch.randn(8, 12))


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: torch.linalg.matmul(x, w.T),
        lambda x, w: torch.linalg.multi_dot([x, w.T, w, w.T]),
        lambda x, w: torch.zeros(len(x), 4).addmm_(x, w.T),
        lambda x, w: torch.zeros(len(x), 4).addbmm_(x[None], w.T[None]),
        lambda x, w: torch.zeros(1, len(x), 4).baddbmm_(x[None], w.T[None])[0],
        lambda x, w: torch.stack([torch.zeros(4).addmv_(w, one) for one in x]),
        lambda x, w: torch.cdist(x, w),
        lambda x, w: F.scaled_dot_product_attention(w[None], x[:, None], x[:, None])[..., 0],
        lambda x, w: torch.linalg.vecdot(x[:, None], w),
        lambda x, w: torch.stack([torch.stack([torch.vdot(a, b) for b in w]) for a in x]),
        lambda x, w: F.pairwise_distance(x[:, None], w),
        lambda x, w: (x[:, None] * w).sum(-1),
        lambda x, w: (x[:, None] - w).square().sum(-1),
    ],
)
def test_every_product_shows_what_it_multiplies_with(product):
    with pytest.raises(ValueError, match=r"^w: the network multiplies with a tensor that it computes"):
        Crossbar(Named(lambda x, w: product(x, w.sign())), 0.1, arrays=["w"])(torch.randn(8, 12))


class Named(nn.Module):
    def __init__(self, product):
        super().__init__()
        self.product, self.w = product, nn.Parameter(torch.randn(4, 12))

    def forward(self, x):
        return self.product(x, self.w)


def as_complex(t):
    return torch.view_as_complex(t.unflatten(-1, (-1, 2)))


def test_a_weight_whose_length_a_product_takes_out_is_refused_by_name():
    net = Named(lambda x, w: F.cosine_similarity(x[:, None], w, dim=-1))
    with pytest.raises(ValueError, match=r"^w: the network multiplies with a tensor that it computes"):
        Crossbar(net, 0.1, arrays=["w"])(torch.randn(8, 12))


@pytest.mark.parametrize(
    ("product", "flagged"),
    [
        (lambda x, w: (x[:, None] * w).sum(-1) / 3, False),
        (lambda x, w: (as_complex(x) @ as_complex(w).T).real, False),
        (lambda x, w: F.linear(x, w) / w.abs().max(), True),
        (lambda x, w: 2 * F.linear(x, w) - w.square().sum(1), True),
    ],
    ids=["elementwise", "complex", "normalised", "distances"],
)
def test_a_weight_that_meets_its_inputs_as_it_is_is_no_other_weight(product, flagged):
    crossbar = Crossbar(Named(product), 0.3, arrays=["w"])
    assert attacked(crossbar, torch.randn(40, 12))[0].accuracy < 1
    flags = of_the_network(crossbar)
    assert any(flag.startswith("w: also computed with outside products") for flag in flags) == flagged


@pytest.mark.parametrize("change", [lambda w: w, torch.t])
def test_parameters_that_the_network_keeps_in_a_list_are_refused_by_name(change):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 12)
            self.held = [(self.fc.weight, self.fc.bias)]

        def forward(self, x):
            return F.linear(x, change(self.held[0][0]), self.held[0][1])

    with pytest.raises(ValueError, match=r"^fc\.weight: .* keeps outside its layers, as in a list"):
        Crossbar(Listed(), 0.1)(torch.randn(8, 12))
