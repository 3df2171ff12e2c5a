"""F-LWC and LWC by hand, and closed forms on networks whose worst case is known."""

import pytest
import torch
from torch import nn
from two_classes import two_classes

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC
from worstcase.attacks.updates import FreeAdam
from worstcase.chip.box import Box


@pytest.mark.parametrize("attack", [FLWC(), FLWC(update="epoch"), LWC(), LWC(project="end", lr=0.1)])
@pytest.mark.parametrize("seed", range(10))
def test_linear_network_closed_form(attack, seed):
    """One sample, O = W x: the lowest margin in the box is at a vertex, margin - 2 bound |x|_1.

    With two classes the true row takes -bound sign(x) and the other +bound sign(x). Just above the th_g at
    which that reaches zero the attack must fail the sample, and just below nothing can.
    """
    layer, x, logits, label = two_classes(seed)
    critical = (logits.max() - logits.min()) / (2 * layer.weight.abs().max() * x.abs().sum())
    for factor, accuracy in ((1.001, 0.0), (0.999, 1.0)):
        crossbar = Crossbar(layer, factor * critical.item())
        assert attack(crossbar, [(x, label)], progress=False).accuracy == accuracy


def test_flwc_is_algorithm_1_on_one_step():
    """By hand: one batch, one step of the whole bound against the sign of the hinge's gradient."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    images, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
    found = FLWC(steps=1)(Crossbar(layer, 0.5), [(images, labels)], progress=False)
    # by row of W: sample 1 adds (2, 1) to row 0 and takes it from row 1, sample 2 (0, 3) the other way
    gradient = torch.tensor([[2.0, 1.0 - 3.0], [-2.0, -1.0 + 3.0]])
    perturbed = layer.weight.detach() - 0.5 * gradient.sign()
    expected = ((images @ perturbed.T).argmax(1) == labels).double().mean().item()
    assert found.final_accuracy == expected == 0.5
    assert torch.equal(found.perturbation["weight"], -0.5 * gradient.sign())


def test_flwc_updates_once_a_batch_and_never_leaves_the_box(small_net, small_batches):
    """Algorithm 1 as printed would take batches x steps steps of bound / steps and leave the box."""
    seen = []
    crossbar = Crossbar(small_net, 0.1)
    crossbar.register_forward_hook(lambda module, inputs, out: seen.append(len(inputs[0])))
    FLWC(steps=2)(crossbar, small_batches, progress=False)
    assert len(seen) == 3 + 2 * (3 + 3)


def test_free_lwc_finds_the_largest_feasible_c(small_net, small_batches):
    found = LWC(project="end", lr=0.1, trials=12)(Crossbar(small_net, 0.1), small_batches, progress=False)
    last = {entry["c"]: entry for entry in found.history[1:]}  # each trial's last entry
    assert len(last) > 3
    feasible = [c for c, entry in last.items() if entry["magnitude"] <= 1]
    infeasible = [c for c, entry in last.items() if entry["magnitude"] > 1]
    assert max(feasible) < min(infeasible)
    assert found.final_accuracy == last[max(feasible)]["accuracy"]


def test_projected_lwc_needs_one_trial(small_net, small_batches):
    found = LWC()(Crossbar(small_net, 0.1), small_batches, progress=False)
    assert {entry["c"] for entry in found.history[1:]} == {1e3}


def test_adam_gets_gradients_that_lie_in_memory_as_the_weights_do():
    """A fused step goes by memory: on a CPU others would move other weights, on a GPU it refuses them."""
    box = Box.symmetric(0.1, {"w": torch.ones(())}, {"w": torch.empty(4, 3, 2, 2)})
    update = FreeAdam(box, box.zero())
    (group,) = update.adam.param_groups
    seen = []
    update.adam.register_step_pre_hook(lambda *_: seen.append(group["params"][0].grad.stride()))
    gradient = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    update({"w": gradient}, 0.01)
    assert seen == [update.perturbation["w"].stride()] != [gradient.stride()]
    assert torch.equal(update.perturbation["w"].sign(), -gradient.sign())


@pytest.mark.parametrize("options", [{}, {"magnitude": "rms"}, {"project": "end", "trials": 3}])
def test_lwc_in_float16_finds_what_it_finds_in_float32(options):
    found = []
    for of in (torch.float32, torch.float16):
        torch.manual_seed(0)
        net, x = nn.Linear(20, 4, bias=False).to(of), (1000 * torch.randn(500, 20)).to(of)
        batches = list(zip(x.split(100), net(x).argmax(1).split(100), strict=True))
        found.append(LWC(epochs=3, **options)(Crossbar(net, 0.1), batches, progress=False))
    many, few = found
    assert few.perturbation["weight"].dtype == torch.float16
    assert abs(few.accuracy - many.accuracy) < 0.03
    same = few.perturbation["weight"].sign() == many.perturbation["weight"].sign()
    assert same.double().mean() > 0.8


class Dense(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)[:, :, None, None].expand(-1, -1, 8, 8)


def test_lwc_takes_the_mean_over_decisions():
    net, x = nn.Linear(4, 3, bias=False), torch.randn(40, 4)
    labels = net(x).argmax(1)
    pixels = labels[:, None, None].expand(-1, 8, 8).clone()
    void = pixels.clone()
    void[:, 1:] = 255
    attack = LWC(epochs=3, c_range=(1e-6, 0.1))
    one, *several = (
        attack(Crossbar(of, 0.1), [(x, y)], progress=False)
        for of, y in ((net, labels), (Dense(net), pixels), (Dense(net), void))
    )
    for found in several:
        assert torch.allclose(found.perturbation["net.weight"], one.perturbation["weight"], rtol=1e-3, atol=1e-5)
