"""What networks do beside computing does not fool an attack."""

import copy

import pytest
import torch
import torch.nn.functional as F
from answers import attacked, own_labels, used_weights
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from worstcase import Crossbar, attacks, evaluate
from worstcase.attacks.passes import accuracy
from worstcase.certificate import Unsupported, certify
from worstcase.methods import UniversalAT
from worstcase.models import MLP

pytestmark = pytest.mark.usefixtures("short_ensemble")


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


class Constrained(nn.Linear):
    """Its weights are kept below a norm, as in EEGNet; here they are."""

    def __init__(self, write):
        super().__init__(20, 5)
        self.write = write

    def forward(self, x):
        self.write(self)
        return super().forward(x)


def renormalised(layer):
    layer.weight.data = torch.renorm(layer.weight.data, 2, 0, 9)


def clamped(layer):
    layer.weight.data.view(-1)[:].clamp_(-9, 9)


@pytest.mark.parametrize("write", [renormalised, clamped])
def test_a_network_that_writes_to_the_data_of_its_weights_is_refused_by_name(write):
    net, x = nn.Sequential(Constrained(write), nn.Linear(5, 5)), torch.randn(8, 20)
    with pytest.raises(ValueError, match=r"^0\.weight: the network writes to it in eval mode"):
        Crossbar(net, 0.1)(x)
    Crossbar(net, 0.1, exclude=["0"])(x)


def test_a_network_is_looked_at_in_inference_mode_too():
    with torch.inference_mode():
        assert Crossbar(nn.Linear(20, 5), 0.1)(torch.randn(8, 20)).shape == (8, 5)
        assert Crossbar(nn.Conv2d(3, 5, 3), 0.1)(torch.randn(8, 3, 4, 4)).shape == (8, 5, 2, 2)


class Pooled(nn.Module):
    """A transformer over sequences that are padded."""

    def __init__(self, pool):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2)
        self.head, self.pool = nn.Linear(6, 5), pool

    def forward(self, x, padded):
        return self.head(self.pool(self.encoder(x, src_key_padding_mask=padded), padded))


def test_a_transformer_whose_padded_places_count_is_refused_as_its_paths_differ():
    torch.manual_seed(0)
    x, padded = torch.randn(8, 7, 6), torch.arange(7) > torch.arange(8)[:, None]
    net = Pooled(lambda y, padded: y.mean(1))
    with pytest.raises(
        ValueError, match=r"^Pooled answers otherwise in plain PyTorch: nn\.TransformerEncoder gives zeros"
    ):
        Crossbar(net, 0.1)((x, padded))
    net.encoder.use_nested_tensor = False
    for right in (net, Pooled(lambda y, padded: y.masked_fill(padded[..., None], 0).sum(1))):
        torch.testing.assert_close(Crossbar(right, 0.1).eval()((x, padded)), right.eval()(x, padded))


def test_padding_that_comes_with_a_later_batch_is_flagged_as_the_chip_differs_in_plain_pytorch():
    torch.manual_seed(0)
    net, x = Pooled(lambda y, padded: y.mean(1)).eval(), torch.randn(40, 7, 6)
    padded = torch.arange(7).expand(40, 7) > 1
    padded[:20] = False
    labels = torch.cat([net(x[:20], padded[:20]), net(x[20:], padded[20:])]).argmax(1)
    data = [((x[:20], padded[:20]), labels[:20]), ((x[20:], padded[20:]), labels[20:])]
    options = {"attacks": attacks.FLWC(steps=2), "progress": False}
    flagged = evaluate(Crossbar(net, 0.01), data, **options)
    assert any("in plain PyTorch (docs/flags.md#plain-pytorch)" in flag for flag in flagged.flags), flagged.flags
    net.encoder.use_nested_tensor = False
    assert not any("plain PyTorch" in flag for flag in evaluate(Crossbar(net, 0.01), data, **options).flags)


def test_a_network_that_asks_for_parameters_is_refused():
    class Asks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if isinstance(self.bias, nn.Parameter) else x @ self.weight.T

    with pytest.raises(
        ValueError, match=r"^Asks answers otherwise in plain PyTorch: does it ask whether a weight"
    ):
        Crossbar(Asks(20, 5), 0.1)(torch.randn(8, 20))


class AlwaysTraining(nn.BatchNorm1d):
    def train(self, mode=True):
        return super().train()


def test_batch_norm_that_goes_on_following_leaves_the_network_as_it_was():
    net, x = nn.Sequential(nn.Linear(20, 5), AlwaysTraining(5)), torch.randn(50, 20)
    before = copy.deepcopy(net.state_dict())
    attacks.FLWC(steps=2)(Crossbar(net, 0.1), [(x, torch.arange(50) % 5)], progress=False)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class SamplesAsTimes(nn.Module):
    """An LSTM whose batch_first was forgotten."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(10, 30)

    def forward(self, x):
        return self.lstm(x.unflatten(1, (2, 10)))[0][:, -1]


MIXING = [
    lambda: nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30, track_running_stats=False)),
    lambda: nn.Sequential(nn.Linear(20, 30), Centred()),
    SamplesAsTimes,
]


@pytest.mark.parametrize("mixing", MIXING)
@pytest.mark.parametrize("alike", [0, 2, 3])  # in a batch of their own: nothing shows there
def test_answers_that_depend_on_the_other_samples_are_scored_in_whole_batches_and_not_proven(mixing, alike):
    torch.manual_seed(0)
    net = nn.Sequential(mixing(), nn.ReLU(), nn.Linear(30, 5))
    x = torch.randn(500, 20) * torch.linspace(0.1, 3, 500)[:, None]
    first = [x[:1].expand(alike, -1).clone()] if alike else []
    crossbar, batches = Crossbar(net, 1e-9), [(part, own_labels(net, part)) for part in (*first, x)]
    found = attacks.MonteCarlo(instances=8)(crossbar, batches, progress=False)
    assert found.distribution["accuracies"] == [1.0] * 8
    with pytest.raises(Unsupported):
        certify(crossbar, batches)


@pytest.mark.parametrize("sizes", [[500], [1, 499]])
def test_the_first_samples_do_not_hide_what_the_others_do(sizes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), Centred(), nn.ReLU(), nn.Linear(30, 5))
    x = torch.randn(500, 20) * torch.linspace(0.1, 3, 500)[:, None]
    x[1] = x[0]
    batches = [(part, own_labels(net, part)) for part in x.split(sizes)]
    found = attacks.MonteCarlo(instances=8)(Crossbar(net, 1e-9), batches, progress=False)
    assert found.distribution["accuracies"] == [1.0] * 8


def test_a_network_that_takes_no_sample_alone_gets_whole_batches():
    crossbar = Crossbar(nn.Sequential(nn.Unflatten(0, (-1, 2)), nn.Flatten(0, 1), nn.Linear(20, 5)), 0.1)
    crossbar(torch.randn(6, 20))
    assert crossbar.depends_on_the_batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_makes_no_answer_depend_on_the_batch(dtype):
    torch.manual_seed(0)
    crossbar = Crossbar(MLP(hidden=[300, 300, 300]).to(dtype), 0.1)
    crossbar(torch.randn(64, 1, 28, 28).to(dtype))
    assert not crossbar.depends_on_the_batch


class CastsWithin(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(20, 30), nn.Linear(30, 5)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.body(x).relu()).float()


def test_autocast_within_a_network_is_flagged_and_around_it_is_not_its_own():
    net, x = CastsWithin(), torch.randn(40, 20)
    found = evaluate(Crossbar(net, 0.1), [(x, own_labels(net, x))], attacks=[attacks.FLWC()], progress=False)
    assert any(flag.startswith("autocast within the network rounds its weights") for flag in found.flags)
    crossbar = Crossbar(nn.Sequential(net.body, net.head), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        crossbar(x)
    assert not crossbar.rounds_weights


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


class Force(nn.Linear):
    """It answers by a gradient of its own."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).tanh().sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("attack", [attacks.FLWC(steps=2), attacks.MonteCarlo(instances=2)])
def test_a_network_may_compute_a_gradient_of_its_own(attack):
    net, x = Force(6, 8), torch.randn(20, 6)
    labels = net(x).argmax(1)
    assert attack(Crossbar(net, 0.3), [(x, labels)], progress=False).clean_accuracy == 1


def test_a_network_that_computes_in_inference_mode_is_told_what_to_do():
    class Frozen(nn.Sequential):
        def forward(self, x):
            with torch.inference_mode():
                x = self[0](x)
            return self[1](x)

    with pytest.raises(ValueError, match=r"^Frozen computes in inference mode .* under torch\.no_grad\(\)$"):
        Crossbar(Frozen(nn.Linear(6, 8), nn.Linear(8, 5)), 0.1)(torch.randn(4, 6))


class Dropping(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x))


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1e-6 * torch.randn(5)


def counts(net, x):
    net.n = getattr(net, "n", 0) + 1
    return net.fc(x) * (1 + net.n)


def follows(net, x):
    """Subtracts a running mean, which it goes on following."""
    h = net.fc(x)
    net.mean = 0.98 * getattr(net, "mean", 0) + 0.02 * h.detach().mean(0)
    return h - net.mean


def caches(net, x):
    """As CLIP does the features of its classes."""
    if net.training or not hasattr(net, "features"):
        net.features = net.text(torch.eye(5, 20))
    return net.fc(x) @ net.features.T


def caches_without_a_gradient(net, x):
    with torch.no_grad():
        caches(net, x)
    return net.fc(x) @ net.features.T


def centred(net, x):
    return net.fc(x - x.mean(0))


class Masked(nn.Module):
    """A class that does not exist yet has the usual -1e9."""

    def __init__(self, logits, mask):
        super().__init__()
        self.fc, self.text, self.logits = nn.Linear(20, 5), nn.Linear(20, 5), logits
        self.register_buffer("mask", mask)

    def forward(self, x):
        return self.logits(self, x) + self.mask


MASKS = {
    "no mask": torch.zeros(5),
    "a class": torch.tensor([0, -1e9, 0, 0, 0]),
    "most": torch.tensor([0, -1e9, -1e9, 0, -1e9]),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())


@every_mask
def test_a_class_that_is_masked_does_not_hide_that_answers_depend_on_the_batch(mask):
    crossbar = Crossbar(Masked(centred, mask), 0.1)
    crossbar(torch.randn(6, 20))
    assert crossbar.depends_on_the_batch


@every_mask
@pytest.mark.parametrize("keeps", [counts, follows])
def test_a_network_that_keeps_numbers_between_passes_is_refused(mask, keeps):
    with pytest.raises(ValueError, match=r"^Masked gives two answers to the same inputs in eval mode"):
        Crossbar(Masked(keeps, mask), 0.1)(torch.randn(8, 20))


@pytest.mark.parametrize("keeps", [caches, caches_without_a_gradient])
def test_a_network_that_keeps_what_it_computed_from_its_weights_is_refused(keeps):
    net = Masked(keeps, torch.zeros(5))
    with pytest.raises(ValueError, match=r"^Masked keeps in eval mode what it computed from its weights"):
        Crossbar(net, 0.1, layers=["fc"])(torch.randn(8, 20))
    assert not hasattr(net, "features")


def test_a_network_of_images_that_keeps_what_it_computed_from_its_weights_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 20, 2), nn.Flatten(), Masked(caches, torch.zeros(5)))
    with pytest.raises(ValueError, match=r"^Sequential keeps in eval mode what it computed from its weights"):
        Crossbar(net, 0.1, layers=["0"])(torch.randn(8, 3, 2, 2))


def test_a_network_may_keep_what_no_weight_has_a_part_in():
    def table(net, x):
        if not hasattr(net, "table"):
            net.table = torch.arange(20.0)
        return net.fc(x + net.table)

    Crossbar(Masked(table, torch.zeros(5)), 0.1)(torch.randn(8, 20))


@every_mask
def test_a_masked_class_is_no_reason_to_refuse(mask):
    crossbar = Crossbar(Masked(lambda net, x: net.fc(x), mask), 0.1)
    crossbar(torch.randn(6, 20))
    assert not crossbar.depends_on_the_batch


@pytest.mark.parametrize("kind", [Dropping, Noisy])
def test_a_network_that_does_not_repeat_itself_is_refused(kind):
    with pytest.raises(ValueError, match=f"^{kind.__name__} gives two answers to the same inputs in eval mode"):
        accuracy(Crossbar(kind(20, 5), 0.1), [(torch.randn(8, 20), torch.zeros(8).long())])


class Versioned(nn.Linear):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        assert state == {"version": 1}


class Sparse(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", torch.eye(3).to_sparse())


@pytest.mark.parametrize("kind", [Versioned, Sparse])
def test_what_is_no_dense_tensor_is_left_as_it_is(kind, tmp_path):
    net, x = nn.Sequential(kind(8, 3)), torch.randn(20, 8)
    result = evaluate(Crossbar(net, 0.1), [(x, own_labels(net, x))], [attacks.FLWC()], progress=False)
    chip = copy.deepcopy(net)
    chip.load_state_dict(result.worst_chip())
    assert (own_labels(chip, x) == own_labels(net, x)).double().mean() == pytest.approx(result.attacked_accuracy)
    result.save(tmp_path)
    assert (tmp_path / "worst_chip.safetensors").exists() == (kind is Versioned)


class Augmented(torch.utils.data.Dataset):
    def __init__(self, *mask):
        self.mask = torch.tensor(mask)

    def __len__(self):
        return 64

    def __getitem__(self, i):
        x = torch.full((8,), float(i)).mul(torch.rand(()))
        x[: len(self.mask)] = self.mask
        return x, i % 3


def whole():
    return TensorDataset(torch.randn(64, 8), torch.arange(64) % 3)


@pytest.mark.parametrize("attack", [attacks.FLWC(), attacks.Ensemble(), attacks.MonteCarlo(instances=2)])
def test_a_reference_set_that_changes_is_refused(attack):
    crossbar = Crossbar(nn.Linear(8, 3), 0.05)
    for loader in (
        DataLoader(Augmented(), 32),
        DataLoader(Augmented(torch.finfo(torch.float32).min, 1e9), 32),
        DataLoader(whole(), 28, shuffle=True, drop_last=True),
    ):
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


class Sign(nn.Module):
    def forward(self, x):
        return torch.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize("seed", [4, 10])
def test_rounding_that_flips_signs_is_no_other_answer(seed):
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(3, 32, 3), Sign(), nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), Sign())
    crossbar = Crossbar(nn.Sequential(first, nn.Flatten(), nn.Linear(32 * 28 * 28, 10)).eval(), 0.01)
    assert crossbar(torch.randn(64, 3, 32, 32)).shape == (64, 10)  # in channels_last some flip
