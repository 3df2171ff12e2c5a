"""What holds for every training method."""

import copy
from functools import partial
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
from worstcase.attacks import LWC
from worstcase.checkpoints import load_weights
from worstcase.data.drawn import ShuffledBatches
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

METHODS = {
    "vanilla": Vanilla,
    "va": VariationAware,
    "trice": Trice,
    "adversarial": partial(Adversarial, attack=LWC(epochs=2)),
    "atrice": ATrice,
    "atrice with reuse": partial(ATrice, reuse=True),
    "pgd_at": PGDAT,
    "universal_at": UniversalAT,
    "universal_at with kl": partial(UniversalAT, loss="kl"),
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
    "universal_at with kl": {"weight_clip": None, "clean": 1.0},
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


def test_a_resumed_run_sees_the_order_that_a_loader_of_yours_draws(small_batches, tmp_path):
    data = [
        (image, label) for images, labels in small_batches for image, label in zip(images, labels, strict=True)
    ]
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    last = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    saving = QUIET | {"enable_checkpointing": True, "callbacks": [last]}
    options = {"optimizer": partial(torch.optim.SGD, lr=0.5)}
    whole = fitted(Vanilla, net, DataLoader(data, 8, shuffle=True), epochs=4, trainer=saving, **options)
    again = DataLoader(data, 8, shuffle=True)
    resumed = fitted(Vanilla, net, again, epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt", **options)
    assert equal(whole, resumed)


def test_a_schedule_may_step_after_each_step_but_not_by_a_metric(small_net, small_loader):
    def by_steps(optimizer):
        return {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), "interval": "step"}

    module = fitted(Vanilla, small_net, small_loader, scheduler=by_steps)
    assert module.optimizers().param_groups[0]["lr"] == 1e-3 / 2**6
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    for refused in (plateau, lambda optimizer: {"scheduler": plateau(optimizer), "monitor": "val/accuracy"}):
        with pytest.raises(ValueError, match=r"scheduler: ReduceLROnPlateau follows a metric"):
            fitted(Vanilla, small_net, small_loader, scheduler=refused)


@every_method
def test_batch_norm_gives_each_pass_the_gradient_of_its_own_statistics(method, small_batches, monkeypatch):
    """A pass in training mode updates the statistics in place, and a gradient may need those of before."""
    plain = nn.BatchNorm2d.forward

    def of_copies(norm, x):
        if norm.training:
            return plain(norm, x)
        return F.batch_norm(x, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias)

    found = []
    for copies in (False, True):
        if copies:
            monkeypatch.setattr(nn.BatchNorm2d, "forward", of_copies)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        module = method(Crossbar(net.double(), 0.05), num_classes=3).train()
        for images, labels in small_batches[:2]:
            net.zero_grad()
            module.training_loss(3 * images.double(), labels).backward()
            module.on_after_backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (lambda labels: 0.9 * F.one_hot(labels, 3) + 0.1 / 3, "soft training labels"),
        (lambda labels: F.one_hot(labels, 3), "the labels are one-hot"),
        (lambda labels: labels + 1, "each label must be 0 to 2, but one is 3"),
    ],
)
def test_training_labels_that_would_teach_something_else_are_refused(labels, message, small_net, small_batches):
    batches = [(images, labels(right)) for images, right in small_batches]
    with pytest.raises(ValueError, match=message):
        fitted(Vanilla, small_net, DataLoader(batches, batch_size=None), epochs=1)


def test_a_label_that_is_no_class_is_named_in_a_later_batch_too(small_net, small_batches):
    (first, *_, (images, labels)) = small_batches
    batches = [first, (images, torch.where(labels == 2, 3, labels))]
    with pytest.raises(ValueError, match=r"each label must be 0 to 2, but one is 3"):
        fitted(Vanilla, small_net, DataLoader(batches, batch_size=None), epochs=1)


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


def test_an_array_that_cannot_be_clipped_is_named(caplog):
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))
    PGDAT(Crossbar(net, 0.1), num_classes=2, weight_clip=None)
    PGDAT(Crossbar(net[2], 0.1), num_classes=2)
    assert not caplog.messages
    PGDAT(Crossbar(net, 0.1), num_classes=2)
    assert caplog.messages == ["weight_clip=2 does not clip 0.weight: the layer computes it anew in each pass"]


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
    for rank in (0, 1):  # which laid it out in its own way
        assert torch.equal(torch.load(tmp_path / f"sum-{rank}.pt"), 2 * torch.arange(6.0).view(2, 3))


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
    with pytest.raises(FloatingPointError, match=r"step 0 .* is not finite before the first step; give the net"):
        L.Trainer(**fit).fit(method(Crossbar(small_net, 0.1), num_classes=3), small_loader)


def test_a_network_without_anything_to_train_is_refused(small_net, small_loader):
    module = Vanilla(Crossbar(small_net.requires_grad_(False), 0.1), num_classes=3)
    with pytest.raises(ValueError, match="no parameter of the network requires a gradient"):
        L.Trainer(max_epochs=1, logger=False, enable_checkpointing=False).fit(module, small_loader)


def test_weights_that_begin_not_finite_are_not_the_learning_rates_fault(small_net, small_loader):
    with torch.no_grad():
        small_net[5].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 0 .*: 5.weight is not finite before the first step"):
        fitted(Vanilla, small_net, small_loader)


@every_method
def test_a_batch_from_which_batch_norm_cannot_learn_is_refused(method):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    loader = DataLoader([(torch.ones(1, 1, 6, 6), torch.tensor([0]))], batch_size=None)
    with pytest.raises(
        ValueError, match=r"batch 0 has one sample, .* batch norm .* batch_size, or drop_last=True"
    ):
        fitted(method, net, loader)


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
        (IBP, {"decades": 0.0}),
        (MTLIBP, {"steps": 0}),
        (MTLIBP, {"clean": 2.0}),
        (UniversalAT, {"members": 0}),
        (UniversalAT, {"loss": "hinge"}),
        (UniversalAT, {"clean": 0, "loss": "kl"}),
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
    with pytest.raises(ValueError, match=f"^{name}={value!r}: must be"):
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


@pytest.mark.parametrize(("loss", "made"), [(None, "NoneType"), (torch.ones(2), r"shape \(2,\)"), (1.0, "float")])
def test_a_loss_that_is_none_is_named(small_net, small_batches, loss, made):
    method = type("Mine", (Vanilla,), {"training_loss": lambda *_: loss})(Crossbar(small_net, 0.1), num_classes=3)
    with pytest.raises(ValueError, match=rf"Mine\.training_loss: must return a tensor of one value, not {made}"):
        method.training_step(small_batches[0], 0)
