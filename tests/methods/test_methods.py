"""Training steps against their algorithms computed by hand, and what holds for every method."""

import copy
from functools import partial
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from commands import run
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC
from worstcase.certificate import certify
from worstcase.checkpoints import load_weights
from worstcase.data.base import ShuffledBatches
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

METHODS = {
    "vanilla": Vanilla,
    "va": VariationAware,
    "trice": Trice,
    "adversarial": partial(Adversarial, attack=LWC(epochs=2)),
    "atrice": ATrice,
    "atrice with reuse": partial(ATrice, reuse=True),
    "pgd_at": PGDAT,
    "universal_at": UniversalAT,
    "sam": SAM,
    "awp": AWP,
    "random_errors": RandomErrors,
    "ibp": IBP,
    "mtl_ibp": MTLIBP,
}
NOISELESS = {  # settings that leave nothing of a method's noise and clipping once th_g is 0
    "va": {"sigma": 0.0},
    "trice": {"sigma": 0.0},
    "atrice": {"sigma": 0.0},
    "atrice with reuse": {"sigma": 0.0},
    "pgd_at": {"weight_clip": None},
    "universal_at": {"weight_clip": None},
    "sam": {"rho": 0.0},
    "awp": {"gamma": 0.0},
    "random_errors": {"weight_clip": None},
    "ibp": {"weight_clip": None},
    "mtl_ibp": {"weight_clip": None},
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def fitted(method, net, loader, *, epochs=2, thg=0.05, trainer=QUIET, ckpt_path=None, **options):
    """A method that has trained a copy of a network."""
    torch.manual_seed(99)  # what was drawn before must not matter
    module = method(Crossbar(copy.deepcopy(net), thg), num_classes=3, **options)
    L.Trainer(max_epochs=epochs, **trainer).fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return module


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


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


def test_members_of_the_pool_start_anew_after_their_lifetime(small_net, small_loader):
    def moved(lifetime):
        module = fitted(UniversalAT, small_net, small_loader, epochs=8, members=1, step=0.0, lifetime=lifetime)
        return (module.pool != UniversalAT(Crossbar(small_net, 0.05), num_classes=3, members=1).pool).any()

    assert moved(lifetime=4) and not moved(lifetime=None)


def test_the_training_box_grows_and_then_stays(small_net, small_loader):
    method = PGDAT(Crossbar(small_net, 0.05), num_classes=3)
    (name, high), *_ = method.crossbar.box.high.items()
    assert method.training_box(1.5, 0.5).high[name] == 1.5 * high  # no trainer, so no ramp
    shares = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            now = module.training_box(1.5, 0.5).high[name] / module.crossbar.box.high[name]
            shares.append(round(now.item(), 4))

    fitted(PGDAT, small_net, small_loader, epochs=2, trainer=QUIET | {"callbacks": [Watch()]})
    assert shares == [0, 0.5, 1.0, 1.5, 1.5, 1.5]


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


# ---- what holds for every method


@every_method
def test_training_lowers_the_loss(method, small_net, small_batches, small_loader):
    def loss(net):
        return sum(F.cross_entropy(net.eval()(images), labels).item() for images, labels in small_batches)

    module = fitted(
        method, small_net, small_loader, epochs=15, thg=0.02, optimizer=partial(torch.optim.Adam, lr=1e-2)
    )
    assert loss(module.crossbar.net) < 0.7 * loss(small_net)


@every_method
def test_same_seed_same_weights_other_seed_others(method, small_net, small_loader):
    """Dropout draws too, so even vanilla depends on the seed."""
    first, again, other = (fitted(method, small_net, small_loader, seed=seed) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not equal(first, other)


@every_method
def test_a_resumed_run_ends_as_an_uninterrupted_one(method, small_net, small_batches, tmp_path):
    """The order of the data, dropout, batch norm, Adam's moments, the schedule and the method's own state."""
    loader = DataLoader(small_batches, sampler=ShuffledBatches(len(small_batches), 1, seed=0), batch_size=None)
    options = {"scheduler": partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), "weight_clip": 1.5}
    last = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    saving = QUIET | {"enable_checkpointing": True, "callbacks": [last]}
    whole = fitted(method, small_net, loader, epochs=4, trainer=saving, **options)
    file = tmp_path / "epoch=1.ckpt"
    resumed = fitted(method, small_net, loader, epochs=4, ckpt_path=file, **options)
    assert resumed.trainer.global_step == 12
    assert equal(whole, resumed)
    rates = [module.optimizers().param_groups[0]["lr"] for module in (whole, resumed)]
    assert rates == [1e-3 / 16] * 2


@every_method
def test_the_network_stays_plain_and_loads_bare(method, small_net, small_loader, tmp_path):
    module = fitted(method, small_net, small_loader, epochs=1)
    assert module.crossbar.net.state_dict().keys() == small_net.state_dict().keys()
    module.trainer.save_checkpoint(tmp_path / "run.ckpt")
    bare = Crossbar(copy.deepcopy(small_net), 0.05)
    load_weights(bare, tmp_path / "run.ckpt")
    assert equal(bare.net, module.crossbar.net)


@every_method
def test_batch_norm_sees_one_pass_a_step(method, small_net, small_batches):
    """Only the clean pass, or the noisy one where there is no clean one, updates the running statistics."""
    small_net.train()
    before = small_net[1].num_batches_tracked.item()
    method(Crossbar(small_net, 0.1), num_classes=3).training_loss(*small_batches[0])
    assert small_net[1].num_batches_tracked.item() == before + 1
    assert all(module.training for module in small_net.modules())


@every_method
def test_without_bound_and_noise_it_is_vanilla(method, small_batches, small_loader, request):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    noiseless = NOISELESS.get(request.node.callspec.id, {})
    module = fitted(method, net, small_loader, thg=0.0, optimizer=partial(torch.optim.SGD, lr=0.1), **noiseless)
    vanilla = fitted(Vanilla, net, small_loader, thg=0.0, optimizer=partial(torch.optim.SGD, lr=0.1))
    for name, weight in vanilla.crossbar.net.state_dict().items():
        torch.testing.assert_close(module.crossbar.net.state_dict()[name], weight)


@every_method
def test_mixed_precision_accumulation_and_gradient_clipping(method, small_net, small_loader):
    """Every parameter learns; none does so further than the clipped gradient lets it."""
    trainer = QUIET | {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.01}
    module = fitted(
        method, small_net, small_loader, epochs=1, trainer=trainer, optimizer=partial(torch.optim.SGD, lr=1.0)
    )
    assert module.trainer.global_step == 2  # of three batches
    moved = [
        (p - q).detach().norm()
        for p, q in zip(module.crossbar.net.parameters(), small_net.parameters(), strict=True)
    ]
    assert all(distance > 0 for distance in moved)
    assert torch.stack(moved).norm() <= 2 * 0.01 * 1.01


@every_method
def test_weights_are_clipped_after_each_step(method, small_net, small_loader):
    one_step = {"epochs": 1, "trainer": QUIET | {"limit_train_batches": 1}}
    free, clipped, valued = (
        fitted(method, small_net, small_loader, **one_step, **options).crossbar
        for options in ({}, {"weight_clip": 1.2}, {"weight_clip": 0.1, "weight_clip_unit": "weight"})
    )
    for name, weight in free.arrays().items():
        limit = 1.2 * weight.square().mean().sqrt().item()
        torch.testing.assert_close(clipped.arrays()[name], nn.Parameter(weight.clamp(-limit, limit)))
        torch.testing.assert_close(valued.arrays()[name], nn.Parameter(weight.clamp(-0.1, 0.1)))
    assert torch.equal(free.net[5].bias, valued.net[5].bias)


@every_method
def test_quantised_networks_train(method, small_net, small_loader):
    crossbar = Crossbar(small_net, 0.05, weight_bits=4, activation_bits=4)
    before = copy.deepcopy(small_net.state_dict())
    L.Trainer(max_epochs=1, **QUIET).fit(method(crossbar, num_classes=3), small_loader)
    assert all(not torch.equal(before[name], weight) for name, weight in crossbar.arrays().items())


def test_two_processes_train_the_same_weights_on_the_same_chips(tmp_path):
    """Each has its own batches; what they perturb and what they learn must be the same."""
    run("two_processes", tmp_path, at=Path(__file__).parent)
    for name in METHODS:
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        assert first["parameters"].keys() == second["parameters"].keys()
        for key, value in first["parameters"].items():
            assert torch.equal(value, second["parameters"][key]), (name, key)
        assert not torch.equal(first["images"], second["images"])
        assert len(first["perturbations"]) == len(second["perturbations"])
        assert bool(first["perturbations"]) == (name not in ("vanilla", "ibp"))
        for a, b in zip(first["perturbations"], second["perturbations"], strict=True):
            assert torch.equal(a, b), name


@every_method
def test_bad_data_and_a_diverged_loss_stop_with_step_and_cause(method, small_net, small_batches, small_loader):
    fit = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    images, labels = small_batches[0]
    images = images.clone()
    images[3, 0, 2, 2] = torch.nan
    module = method(Crossbar(copy.deepcopy(small_net), 0.1), num_classes=3)
    with pytest.raises(FloatingPointError, match=r"step 0 \(epoch 0\): the batch has inputs"):
        L.Trainer(**fit).fit(module, DataLoader([(images, labels)], batch_size=None))
    module = method(Crossbar(small_net, 0.1), num_classes=3, optimizer=lambda p: torch.optim.SGD(p, lr=torch.inf))
    with pytest.raises(FloatingPointError, match=r"step 1 .*became not finite; lower the learning rate"):
        L.Trainer(**fit).fit(module, small_loader)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (ATrice, {"alpha": 1.5}),
        (ATrice, {"step": -1.0}),
        (ATrice, {"sigma": float("inf")}),
        (ATrice, {"threshold": float("nan")}),
        (VariationAware, {"sigma": -0.1}),
        (Trice, {"threshold": float("inf")}),
        (METHODS["adversarial"], {"clean": 2.0}),
        (PGDAT, {"steps": 0}),
        (PGDAT, {"ramp": 1.5}),
        (PGDAT, {"warm_up": -0.1}),
        (IBP, {"share": 1.5}),
        (IBP, {"factor": -1.0}),
        (MTLIBP, {"steps": 0}),
        (MTLIBP, {"clean": 2.0}),
        (UniversalAT, {"members": 0}),
        (UniversalAT, {"lifetime": 0.5}),
        (UniversalAT, {"momentum": -1.0}),
        (ATrice, {"sigma": True}),
        (Trice, {"sigma": "big"}),
        (PGDAT, {"steps": 2.5}),
        (PGDAT, {"steps": True}),
        (PGDAT, {"step": float("nan")}),
        (PGDAT, {"factor": float("inf")}),
        (UniversalAT, {"members": 1.5}),
        (UniversalAT, {"lifetime": float("nan")}),
        (Vanilla, {"weight_clip": 0.9}),
        (Vanilla, {"weight_clip": True}),
        (Vanilla, {"weight_clip_unit": "volt"}),
    ],
)
def test_settings_out_of_range(method, options):
    (name, value), *_ = options.items()
    value = repr(value) if name != "weight_clip_unit" else value
    with pytest.raises(ValueError, match=f"^{name}={value}: must be"):
        method(Crossbar(nn.Linear(2, 2), 0.1), num_classes=2, **options)


@every_method
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes=1: must be 2 or more"),
        ({"num_classes": 3.0}, r"num_classes=3\.0: must be a whole number, 2 or more"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296: must be a whole number from 0 to 4294967295"),
        ({"seed": 0.0}, r"seed=0\.0: must be a whole number"),
    ],
)
def test_classes_and_seeds_out_of_range(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(Crossbar(nn.Linear(2, 2), 0.1), **{"num_classes": 2, **options})
