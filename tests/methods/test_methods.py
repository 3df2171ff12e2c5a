"""Training steps against their algorithms computed by hand, and what holds for every method."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from worstcase import Crossbar
from worstcase.methods import ATrice, Vanilla

METHODS = {"vanilla": Vanilla, "atrice": ATrice}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


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
    torch.manual_seed(1)
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
    torch.manual_seed(1)
    noise = (torch.randn(3, 5, dtype=torch.double) * sigma * full_scale).clamp(max=threshold * sigma * full_scale)
    loss_n, gradient_n = cross_entropy_gradient(weight + noise, images, labels)  # 13-15
    torch.testing.assert_close(loss, (1 - alpha) * loss_n + alpha * loss_p)  # 16
    torch.testing.assert_close(layer.weight.grad, (1 - alpha) * gradient_n + alpha * gradient_p)  # 17


def test_vanilla_loss_by_hand():
    layer = nn.Linear(4, 3, bias=False)
    images, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Vanilla(Crossbar(layer, 0.1), num_classes=3).training_loss(images, labels)
    loss.backward()
    by_hand, gradient = cross_entropy_gradient(layer.weight.detach(), images, labels)
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(layer.weight.grad, gradient)


def test_atrice_without_adversary_or_noise_is_vanilla(small_net, small_batches):
    small_net[4].p = 0.0  # dropout would draw from the same generator as the noise
    images, labels = small_batches[0]
    atrice = ATrice(Crossbar(small_net, 0.0), num_classes=3, alpha=0.0, sigma=0.0)
    vanilla = Vanilla(Crossbar(small_net, 0.0), num_classes=3)
    torch.testing.assert_close(
        atrice.training_loss(images, labels), vanilla.training_loss(images, labels), rtol=0, atol=0
    )


@every_method
def test_batch_norm_sees_one_pass_a_step(method, small_net, small_batches):
    """Only the clean (vanilla) or noisy (A-TRICE) pass updates the running statistics."""
    small_net.train()
    before = small_net[1].num_batches_tracked.item()
    method(Crossbar(small_net, 0.1), num_classes=3).training_loss(*small_batches[0])
    assert small_net[1].num_batches_tracked.item() == before + 1
    assert all(module.training for module in small_net.modules())


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
    "options", [{"alpha": 1.5}, {"step": -1.0}, {"sigma": float("inf")}, {"threshold": float("nan")}]
)
def test_settings_out_of_range(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"method.{name}={value}: must be"):
        ATrice(Crossbar(nn.Linear(2, 2), 0.1), num_classes=2, **options)
