"""Training steps against their algorithms computed by hand."""

import copy
from functools import partial
from itertools import pairwise

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from test_methods import QUIET, fitted
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from worstcase import Crossbar
from worstcase.attacks import FLWC
from worstcase.certificate import Unsupported, certify
from worstcase.methods import (
    AWP,
    IBP,
    MTLIBP,
    PGDAT,
    SAM,
    Adversarial,
    ATrice,
    RandomErrors,
    Trice,
    UniversalAT,
    Vanilla,
    VariationAware,
)
from worstcase.seeds import seeded


def linear_case(**options):
    """O = W x in double precision: three classes, four samples."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False, dtype=torch.double)
    images, labels = torch.randn(4, 5, dtype=torch.double), torch.tensor([0, 2, 1, 1])
    return layer, layer.weight.detach().clone(), images, labels


def cross_entropy_gradient(weight, images, labels):
    """Loss and gradient of O = W x under cross-entropy: mean of (softmax(O) - onehot) x^T."""
    logits = images @ weight.T
    probabilities = logits.softmax(1)
    onehot = torch.eye(weight.shape[0], dtype=weight.dtype)[labels]
    loss = -(probabilities.log() * onehot).sum(1).mean()
    return loss, (probabilities - onehot).T @ images / len(images)


def test_atrice_step_equals_algorithm_3_by_hand():
    """O = W x, so every line has a closed form: three classes, four samples of which one is wrong."""
    torch.manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.double)
    images = torch.randn(4, 5, dtype=torch.double)
    logits = images @ weight.T
    labels = logits.argmax(1)
    labels[3] = (labels[3] + 1) % 3
    thg, alpha, sigma, threshold = 0.05, 0.3, 0.2, 0.6
    layer = nn.Linear(5, 3, bias=False, dtype=torch.double)
    with torch.no_grad():
        layer.weight.copy_(weight)
    method = ATrice(Crossbar(layer, thg), num_classes=3, alpha=alpha, step=1.5, sigma=sigma, threshold=threshold)
    loss = method.training_loss(images, labels)
    loss.backward()

    # lines 8-9: of a right sample, p2's gradient is x in the true row and -x in the runner-up's
    cost_gradient = torch.zeros_like(weight)
    for x, o, t in zip(images[:3], logits[:3], labels[:3], strict=True):
        runner_up = max((i for i in range(3) if i != t), key=lambda i: o[i])
        cost_gradient[t] += x
        cost_gradient[runner_up] -= x
    full_scale = weight.abs().max()
    s = 1.5 * thg * full_scale
    loss_p, gradient_p = cross_entropy_gradient(weight - s * cost_gradient.sign(), images, labels)  # 10-11
    drawn = torch.randn(3, 5, dtype=torch.double, generator=seeded(0, 0, 0))
    noise = (drawn * sigma * full_scale).clamp(max=threshold * sigma * full_scale)
    loss_n, gradient_n = cross_entropy_gradient(weight + noise, images, labels)  # 13-15
    torch.testing.assert_close(loss, (1 - alpha) * loss_n + alpha * loss_p)  # 16
    torch.testing.assert_close(layer.weight.grad, (1 - alpha) * gradient_n + alpha * gradient_p)  # 17


def test_atrice_with_reuse_steps_up_the_gradient_of_the_last_adversary():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, bias=False, dtype=torch.double)
    images, labels = torch.randn(4, 5, dtype=torch.double), torch.tensor([0, 1, 2, 0])
    method = ATrice(Crossbar(layer, 0.05), num_classes=3, alpha=1.0, step=1.5, reuse=True).double()
    expected = layer.weight.detach().clone()  # the first adversary deviates nowhere
    for _ in range(2):
        loss_p, gradient_p = cross_entropy_gradient(expected, images, labels)
        loss = method.training_loss(images, labels)
        torch.testing.assert_close(loss, loss_p)
        loss.backward()
        method.on_after_backward()
        step = 1.5 * 0.05 * layer.weight.detach().abs().max()
        expected = layer.weight.detach() + step * gradient_p.sign()
    assert ATrice(Crossbar(layer, 0.05), num_classes=3).state_dict().keys() == {"crossbar.net.weight"}


def test_vanilla_loss_by_hand():
    layer = nn.Linear(4, 3, bias=False)
    images, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Vanilla(Crossbar(layer, 0.1), num_classes=3).training_loss(images, labels)
    loss.backward()
    by_hand, gradient = cross_entropy_gradient(layer.weight.detach(), images, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


@pytest.mark.parametrize("method", [VariationAware, Trice])
def test_noise_by_hand(method):
    """Fresh noise of sigma x full scale, cut off on the right by TRICE (Eq. 11); its gradient is W's."""
    layer, weight, images, labels = linear_case()
    loss = method(Crossbar(layer, 0.05), num_classes=3, sigma=0.2).training_loss(images, labels)
    loss.backward()
    noise = torch.randn(3, 5, dtype=torch.double, generator=seeded(0, 0, 0)) * 0.2 * weight.abs().max()
    if method is Trice:
        noise = noise.clamp(max=0.2 * weight.abs().max())
    by_hand, gradient = cross_entropy_gradient(weight + noise, images, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_adversarial_step_equals_algorithm_2_by_hand():
    layer, weight, images, labels = linear_case()
    crossbar, attack = Crossbar(layer, 0.05), FLWC(steps=3)
    worst = attack(crossbar, [(images, labels)]).perturbation["weight"]  # line 7
    assert worst.abs().max() > 0
    loss = Adversarial(crossbar, num_classes=3, attack=attack).training_loss(images, labels)
    loss.backward()
    by_hand, gradient = cross_entropy_gradient(weight + worst, images, labels)  # lines 8-10
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_pgd_at_step_by_hand():
    layer, weight, images, labels = linear_case()
    method = PGDAT(Crossbar(layer, 0.05), num_classes=3, steps=3, step=0.6, factor=1.5, clean=0.3)
    loss = method.training_loss(images, labels)
    loss.backward()
    bound = 1.5 * 0.05 * weight.abs().max()
    d = torch.zeros_like(weight)
    for _ in range(3):
        d = (d + 0.6 * bound * cross_entropy_gradient(weight + d, images, labels)[1].sign()).clamp(-bound, bound)
    loss_p, gradient_p = cross_entropy_gradient(weight + d, images, labels)
    loss_c, gradient_c = cross_entropy_gradient(weight, images, labels)
    torch.testing.assert_close(loss, 0.7 * loss_p + 0.3 * loss_c)
    torch.testing.assert_close(layer.weight.grad, 0.7 * gradient_p + 0.3 * gradient_c)


def test_sam_climbs_by_rho_over_all_weights():
    layer, weight, images, labels = linear_case()
    loss = SAM(Crossbar(layer, 0.05), num_classes=3, rho=0.3).training_loss(images, labels)
    loss.backward()
    uphill = cross_entropy_gradient(weight, images, labels)[1]
    by_hand, gradient = cross_entropy_gradient(weight + 0.3 * uphill / uphill.norm(), images, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_awp_climbs_by_a_share_of_each_arrays_length():
    layer, weight, images, labels = linear_case()
    loss = AWP(Crossbar(layer, 0.05), num_classes=3, gamma=0.2).training_loss(images, labels)
    loss.backward()
    uphill = cross_entropy_gradient(weight, images, labels)[1]
    there = weight + 0.2 * weight.norm() * uphill / uphill.norm()
    by_hand, gradient = cross_entropy_gradient(there, images, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_random_errors_train_on_a_vertex_and_as_programmed():
    layer, weight, images, labels = linear_case()
    loss = RandomErrors(Crossbar(layer, 0.05), num_classes=3, clean=0.3).training_loss(images, labels)
    loss.backward()
    coin = torch.randint(2, (3, 5), dtype=torch.double, generator=seeded(0, 0, 0)) * 2 - 1
    loss_p, gradient_p = cross_entropy_gradient(weight + coin * 0.05 * weight.abs().max(), images, labels)
    loss_c, gradient_c = cross_entropy_gradient(weight, images, labels)
    torch.testing.assert_close(loss, 0.7 * loss_p + 0.3 * loss_c)
    torch.testing.assert_close(layer.weight.grad, 0.7 * gradient_p + 0.3 * gradient_c)


def test_ibp_step_by_hand():
    """Each row of W deviates by itself, and the bound grows with the largest weight."""
    layer, weight, images, labels = linear_case()
    loss = IBP(Crossbar(layer, 0.05), num_classes=3, share=0.4, factor=1.5).training_loss(images, labels)
    loss.backward()
    w = weight.requires_grad_()
    z, spread = images @ w.T, 1.5 * 0.05 * w.abs().max() * images.abs().sum(1, keepdim=True)
    worst = z + 2 * spread * (torch.arange(3) != labels[:, None])
    by_hand = 0.6 * F.cross_entropy(z, labels) + 0.4 * F.cross_entropy(worst, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, *torch.autograd.grad(by_hand, w))


@pytest.mark.parametrize("dtype", [torch.float, torch.long])
def test_ibp_refuses_several_labels_a_sample(dtype):
    images, labels = torch.randn(8, 4), torch.ones(8, 3, dtype=dtype)
    with pytest.raises(Unsupported, match=r"only outputs \(N, C\) with labels \(N,\)"):
        IBP(Crossbar(nn.Linear(4, 3), 0.01), num_classes=2).training_loss(images, labels)


def test_ibp_selects_by_what_intervals_certify(small_net, small_batches, small_loader):
    module = IBP(Crossbar(small_net, 0.001), num_classes=3)
    trainer = L.Trainer(max_epochs=3, **QUIET)
    trainer.fit(module, small_loader, small_loader)
    proven = certify(module.crossbar, small_batches).accuracy
    assert 0 < proven < 1 and module.monitor == "val/certified_accuracy"
    assert trainer.callback_metrics[module.monitor].item() == pytest.approx(proven)


def test_mtl_ibp_step_by_hand():
    layer, weight, images, labels = linear_case()
    options = {"share": 0.4, "steps": 2, "step": 0.6, "clean": 0.3}
    loss = MTLIBP(Crossbar(layer, 0.05), num_classes=3, **options).training_loss(images, labels)
    bound = 0.05 * weight.abs().max()
    d = torch.zeros_like(weight)
    for _ in range(2):
        d = (d + 0.6 * bound * cross_entropy_gradient(weight + d, images, labels)[1].sign()).clamp(-bound, bound)
    found, clean = (cross_entropy_gradient(w, images, labels)[0] for w in (weight + d, weight))
    spread = 2 * bound * images.abs().sum(1, keepdim=True) * (torch.arange(3) != labels[:, None])
    worst = F.cross_entropy(images @ weight.T + spread, labels)
    torch.testing.assert_close(loss, 0.6 * (0.7 * found + 0.3 * clean) + 0.4 * worst)


def test_universal_at_step_by_hand():
    """The pass that trains also improves the member it trained on, and no other."""
    layer, weight, images, labels = linear_case()
    method = UniversalAT(
        Crossbar(layer, 0.05), num_classes=3, members=3, step=0.25, momentum=0.5, factor=1.5, clean=0.3
    ).double()
    before = method.pool.clone()
    assert before.shape == (3, 15) and before.abs().max() <= 1 and before.std() > 0.4
    velocity = torch.zeros_like(before)
    bound = 1.5 * 0.05 * weight.abs().max()
    for _ in range(2):  # with the same draws, so the same member
        method.draws = seeded(0, 0, 0)
        loss = method.training_loss(images, labels)
        layer.weight.grad = None
        loss.backward()
        member = method._member
        loss_p, gradient_p = cross_entropy_gradient(weight + bound * before[member].view(3, 5), images, labels)
        loss_c, gradient_c = cross_entropy_gradient(weight, images, labels)
        torch.testing.assert_close(loss, 0.7 * loss_p + 0.3 * loss_c)
        torch.testing.assert_close(layer.weight.grad, 0.7 * gradient_p + 0.3 * gradient_c)
        method.on_after_backward()
        velocity[member] = 0.5 * velocity[member] + (gradient_p / gradient_p.abs().mean()).flatten()
        before[member] = (before[member] + 0.25 * velocity[member].sign()).clamp(-1, 1)
        torch.testing.assert_close(method.velocity, velocity)
        torch.testing.assert_close(method.pool, before)


def test_universal_at_by_divergence_by_hand():
    """Logits (1, 0) as programmed, (1 + d, 0) on the chip: KL of two classes, and its derivative in both."""
    layer = nn.Linear(1, 2, bias=False, dtype=torch.double)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [0.0]]))
    method = UniversalAT(Crossbar(layer, 0.5), num_classes=2, members=1, clean=0.2, loss="kl")
    d = method.crossbar.box.scaled(1.5).at({"weight": method.pool[0].double().view(2, 1)})["weight"]
    loss = method.training_loss(torch.ones(1, 1, dtype=torch.double), torch.tensor([0]))
    loss.backward()
    p, q = torch.sigmoid(1 + 0 * d[0]), torch.sigmoid(1 + d[0] - d[1])
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert loss.item() == pytest.approx((-0.2 * p.log() + 0.8 * divergence).item())
    of_chip = 0.8 * (q - p)  # of the logit of class 0 on the chip; as programmed it is the rest
    as_programmed = 0.8 * p * (1 - p) * ((p / q).log() - ((1 - p) / (1 - q)).log()) - 0.2 * (1 - p)
    assert method._adversary["weight"].grad[0].item() == pytest.approx(of_chip.item())
    assert layer.weight.grad[0].item() == pytest.approx((of_chip + as_programmed).item())


def test_members_of_the_pool_start_anew_after_their_lifetime(small_net, small_loader):
    def moved(lifetime):
        module = fitted(UniversalAT, small_net, small_loader, epochs=8, members=1, step=0.0, lifetime=lifetime)
        return (module.pool != UniversalAT(Crossbar(small_net, 0.05), num_classes=3, members=1).pool).any()

    assert moved(lifetime=4) and not moved(lifetime=None)


@pytest.mark.parametrize(
    ("decades", "shares"), [(None, [0, 0.5, 1.0, 1.5, 1.5, 1.5]), (3, [0.0015, 0.015, 0.15, 1.5, 1.5, 1.5])]
)
def test_the_training_box_grows_and_then_stays(decades, shares, small_net, small_loader):
    method = PGDAT(Crossbar(small_net, 0.05), num_classes=3)
    (name, high), *_ = method.crossbar.box.high.items()
    assert method.training_box(1.5, 0.5, decades).high[name] == 1.5 * high  # no trainer, so no ramp
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            now = module.training_box(1.5, 0.5, decades).high[name] / module.crossbar.box.high[name]
            seen.append(now.item())

    fitted(PGDAT, small_net, small_loader, epochs=2, trainer=QUIET | {"callbacks": [Watch()]})
    assert seen == pytest.approx(shares, rel=1e-5)


def test_in_the_warm_up_the_box_is_0_also_by_powers_of_ten(small_net):
    method = RandomErrors(Crossbar(small_net, 0.05), num_classes=3, warm_up=0.3)
    method._steps, method._trainer = 10.0, L.Trainer(**QUIET)  # 10 steps, none of them done
    assert not method.training_box(1.0, 0.6, decades=2).high["0.weight"].any()


class Stream(IterableDataset):
    """Two batches without a length."""

    def __iter__(self):
        return iter([(torch.ones(2, 1, 6, 6), torch.tensor([0, 1]))] * 2)


@pytest.mark.parametrize(
    ("method", "options"),
    [(PGDAT, {}), (UniversalAT, {}), (RandomErrors, {"warm_up": 0.1}), (IBP, {}), (MTLIBP, {})],
)
@pytest.mark.parametrize("trainer", [{}, {"max_epochs": -1, "max_time": {"seconds": 5}}])
def test_a_box_that_grows_needs_the_length_of_the_training(method, options, trainer, small_net):
    module = method(Crossbar(small_net, 0.05), num_classes=3, **options)
    with pytest.raises(
        ValueError, match=r"length of the training is not known.* max_steps, or .* limit_train_batches"
    ):
        L.Trainer(**({"max_epochs": 1} | trainer), **QUIET).fit(module, DataLoader(Stream(), batch_size=None))


def test_a_box_that_grows_needs_one_accumulation(small_net, small_batches):
    options = {"max_epochs": 2, "callbacks": [L.pytorch.callbacks.GradientAccumulationScheduler({1: 4})]}
    batches = DataLoader(small_batches, batch_size=None)
    L.Trainer(**options, **QUIET).fit(Vanilla(Crossbar(small_net, 0.05), num_classes=3), batches)
    with pytest.raises(ValueError, match=r"length of the training is not known.* one accumulate_grad_batches"):
        L.Trainer(**options, **QUIET).fit(PGDAT(Crossbar(small_net, 0.05), num_classes=3), batches)


class Drawn(Dataset):
    """Inputs that a worker draws."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.rand(1, 6, 6), index % 3


@pytest.mark.parametrize("persistent", [False, True])
def test_a_resumed_training_sees_what_workers_would_have_drawn(persistent, small_net, tmp_path):
    def trained(epochs, checkpoint=None):
        L.seed_everything(0, verbose=False)
        data = DataLoader(Drawn(), batch_size=4, num_workers=1, persistent_workers=persistent)
        trainer = L.Trainer(max_epochs=epochs, **QUIET)
        module = Vanilla(Crossbar(copy.deepcopy(small_net), 0.05), num_classes=3)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return module.state_dict()

    whole = trained(3)
    trained(2)
    resumed = trained(3, tmp_path / "last.ckpt")
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


@pytest.mark.parametrize("bits", [None, 4], ids=["float", "quantised"])
def test_the_seed_decides_what_workers_draw_from_the_first_batch_on(bits, small_net):
    """Quantised outputs take their first ranges from the loader, which must not lose a batch by it."""

    def seen(drawn_before):
        images = []

        class Watch(L.Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_idx):
                images.append(batch[0])

        torch.manual_seed(drawn_before)
        data = DataLoader(Drawn(), batch_size=2, shuffle=True, num_workers=1, persistent_workers=True)
        module = Vanilla(Crossbar(copy.deepcopy(small_net), 0.05, activation_bits=bits), num_classes=3)
        L.Trainer(max_epochs=1, **QUIET | {"callbacks": [Watch()]}).fit(module, data)
        return torch.cat(images)

    one, other = seen(0), seen(1)
    assert len(one) == 8 and torch.equal(one, other)


@pytest.mark.parametrize(
    ("method", "length"),
    [
        (PGDAT, {"max_steps": 3}),
        (PGDAT, {"max_epochs": 2, "limit_train_batches": 2}),
        (RandomErrors, {"max_epochs": 2}),
        (Vanilla, {"max_epochs": 2}),
    ],
)
def test_a_stream_trains_where_its_length_is_said_or_nothing_grows(method, length, small_net):
    module = method(Crossbar(small_net, 0.05), num_classes=3)
    L.Trainer(**length, **QUIET).fit(module, DataLoader(Stream(), batch_size=None))
    assert module.global_step == length.get("max_steps", 4)
    assert module.grown(getattr(module, "ramp", 0)) == 1


def test_after_the_warm_up_batch_norm_stays_and_the_box_grows(small_net, small_loader):
    small_net.train()
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            mean = module.crossbar.net[1].running_mean.clone()
            spread = [weight.square().mean().sqrt() for weight in module.crossbar.arrays().values()]
            seen.append((mean, torch.stack(spread).detach(), module.grown(0.8)))

    watching = QUIET | {"callbacks": [Watch()]}
    clipping_alone = partial(torch.optim.SGD, lr=0.0)
    options = {"optimizer": clipping_alone, "clean": 0.0, "weight_clip": 1.2, "warm_up": 0.4}
    fitted(UniversalAT, small_net, small_loader, epochs=5, trainer=watching, **options)
    assert [round(grown, 3) for *_, grown in seen] == [0] * 6 + [0.167, 0.333, 0.5, 0.667, 0.833] + [1] * 4
    means, spreads, _ = zip(*seen, strict=True)
    moved = [not torch.equal(*pair) for pair in pairwise(means)]
    assert moved == [True] * 5 + [False] * 9
    assert all(torch.allclose(spread, spreads[0]) for spread in spreads)


def test_a_clip_in_weight_units_holds_with_a_warm_up(small_net, small_loader):
    options = {"weight_clip": 0.05, "weight_clip_unit": "weight", "warm_up": 0.4}
    crossbar = fitted(PGDAT, small_net, small_loader, **options).crossbar
    assert all(weight.abs().max() <= 0.05 for weight in crossbar.arrays().values())
