"""A GPU computes what the CPU does. Run by benchmarks/gpu.sh; `WORSTCASE_GPU=cpu` tries the tests without one."""

import copy
import os
from functools import partial

import pytest
import torch
from commands import QUICK, run
from torch import nn

from worstcase import Crossbar, Tolerance, evaluate, reprogram, tolerance
from worstcase.attacks import FLWC, LWC, PGD, Ensemble, MonteCarlo
from worstcase.attacks.passes import accuracy
from worstcase.certificate import certify
from worstcase.certificate.interval import IntervalBounds
from worstcase.chip.mapping import DeviceMapping
from worstcase.evaluation.record import Record
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
from worstcase.verify.sensitivities import by_second_derivative

DEVICE = os.environ.get("WORSTCASE_GPU", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]
ATTACKS = {
    "flwc": FLWC(steps=4),
    "lwc": LWC(epochs=4),
    "pgd": PGD(steps=4),
    "ensemble": Ensemble(budget=30),
    "monte_carlo": MonteCarlo(instances=5),
}
DRAWS = ("ensemble",)  # a device has random numbers of its own; Monte Carlo's chips are the CPU's
METHODS = {
    "vanilla": Vanilla,
    "adversarial": partial(Adversarial, attack=FLWC(steps=2)),
    "pgd_at": PGDAT,
    "sam": SAM,
    "awp": AWP,
    "ibp": IBP,
    "mtl_ibp": MTLIBP,
    "va": VariationAware,
    "trice": Trice,
    "atrice": ATrice,
    "universal_at": UniversalAT,
    "random_errors": RandomErrors,
}
DRAW = ("va", "trice", "atrice", "universal_at", "random_errors")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)).double()


@pytest.fixture
def batches(net):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(60, 2, 8, 8, generator=generator, dtype=torch.double)
    with torch.no_grad():
        labels = net(images).argmax(1)
    labels[::9] = 0
    return [(images[:32], labels[:32]), (images[32:], labels[32:])]


class Recurrent(nn.Module):
    """Images (N, 2, 8, 8) in, logits (N, 4) out."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer(16, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.layer(x.transpose(1, 2).flatten(2))[0][:, -1])


def on(device, net, dtype=torch.double):
    return Crossbar(copy.deepcopy(net).to(device, dtype), 0.05)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_the_same_and_leaves_all_where_it_was(name, net, batches):
    crossbar = on(DEVICE, net)
    before = copy.deepcopy(crossbar.net.state_dict())
    found = ATTACKS[name](crossbar, batches, progress=False)
    assert found.feasible and crossbar.box.contains(found.perturbation)
    assert all(d.device.type == DEVICE for d in found.perturbation.values())
    assert all(x.device.type == "cpu" and y.device.type == "cpu" for x, y in batches)
    assert all(torch.equal(before[key], value) for key, value in crossbar.net.state_dict().items())
    again = ATTACKS[name](crossbar, batches, progress=False)
    assert again.accuracy == found.accuracy
    on_cpu = ATTACKS[name](on("cpu", net), batches, progress=False)
    assert on_cpu.clean_accuracy == found.clean_accuracy
    if name not in DRAWS:
        assert on_cpu.accuracy == pytest.approx(found.accuracy, abs=0.02)
        for key, d in on_cpu.perturbation.items():
            assert (d - found.perturbation[key].cpu()).abs().median() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_found_is_in_the_box_in_every_precision(name, dtype, net, batches):
    crossbar = on(DEVICE, net, dtype)
    lower = [(images.to(dtype), labels) for images, labels in batches]
    found = ATTACKS[name](crossbar, lower, progress=False)
    assert found.feasible and found.accuracy <= found.clean_accuracy
    chip, programmed = crossbar.weights(found.perturbation), crossbar.programmed()
    for key, high in crossbar.box.high.items():
        deviation = chip[key].double() - programmed[key].double()
        assert (deviation.abs() <= high.double() * (1 + 1e-3)).all(), key


@pytest.mark.parametrize("name", METHODS)
def test_a_training_step_has_the_same_loss_and_gradient(name, net, batches):
    images, labels = batches[0]
    losses, gradients = [], []
    for device in ("cpu", DEVICE):
        crossbar = on(device, net)
        module = METHODS[name](crossbar, num_classes=4).to(device).double()
        module.draws = torch.Generator(device).manual_seed(0)
        loss = module.training_loss(images.to(device), labels.to(device))
        loss.backward()
        losses.append(loss.item())
        gradients.append(crossbar.net[0].weight.grad.cpu())
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)
    if name not in DRAW:
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)
        torch.testing.assert_close(*gradients)


def test_a_proof_has_the_same_margins(net, batches):
    images, labels = batches[0]
    margins = [
        IntervalBounds(on(d, net).eval()).margins(images.to(d), labels.to(d)).cpu() for d in ("cpu", DEVICE)
    ]
    torch.testing.assert_close(*margins)


def test_an_evaluation_holds_all_together(net, batches):
    result = evaluate(on(DEVICE, net), batches, [FLWC(), MonteCarlo(instances=3)], progress=False)
    assert (result.certified_accuracy or 0) <= result.attacked_accuracy <= result.clean_accuracy


@pytest.mark.parametrize("method", ["universal_at", "atrice"])
def test_the_commands_compute_there(method, tmp_path):
    trained, evaluated = tmp_path / "trained", tmp_path / "evaluated"
    variables = {"CUDA_VISIBLE_DEVICES": ""} if DEVICE == "cpu" else {}
    run("src.train", *QUICK, f"method={method}", f"hydra.run.dir={trained}", variables=variables)
    words = [f"run={trained}", "attack=lwc", "certificate=null", f"hydra.run.dir={evaluated}"]
    run("src.evaluate", *words, variables=variables)
    for folder in (trained, evaluated):
        name = Record.load(folder).device
        assert name == "cpu" if DEVICE == "cpu" else name.startswith(torch.cuda.get_device_name())


def test_a_crossbar_answers_as_the_network_does(net, batches):
    images, _ = batches[0]
    crossbar = on(DEVICE, net, torch.float32)
    plain = copy.deepcopy(net).float().to(DEVICE)
    with torch.no_grad():
        expected = plain(images.float().to(DEVICE))
        torch.testing.assert_close(crossbar.eval()(images.float().to(DEVICE)), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_network_is_attacked_in_eval_mode_and_trained(layer, batches):
    """Where cuDNN computes it, no gradient leads back."""
    torch.manual_seed(0)
    net = Recurrent(layer).double()
    with torch.no_grad():
        own = [(images, net(images).argmax(1)) for images, _ in batches]
    crossbar = on(DEVICE, net)
    before, cudnn = copy.deepcopy(crossbar.net.state_dict()), torch.backends.cudnn.enabled
    found, on_cpu = (FLWC(steps=4)(c, own, progress=False) for c in (crossbar, on("cpu", net)))
    assert not found.unmoved and found.accuracy == pytest.approx(on_cpu.accuracy, abs=0.04)
    for key, d in on_cpu.perturbation.items():
        assert (d - found.perturbation[key].cpu()).abs().median() < 1e-9
    evaluate(crossbar, own, MonteCarlo(instances=3), progress=False)
    by_second_derivative(crossbar, own)
    method = PGDAT(crossbar, num_classes=4).to(DEVICE).double().train()
    method.training_loss(*(t.to(DEVICE) for t in own[0])).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in crossbar.net.parameters())
    assert all(torch.equal(before[key], value) for key, value in crossbar.net.state_dict().items())
    assert torch.backends.cudnn.enabled == cudnn


def test_ranges_of_outputs_are_found_wherever_the_network_was_when_the_crossbar_was_made(net, batches):
    made_there = Crossbar(copy.deepcopy(net).to(DEVICE), 0.05, weight_bits=6, activation_bits=6)
    moved = Crossbar(copy.deepcopy(net), 0.05, weight_bits=6, activation_bits=6).to(DEVICE)
    made_there.calibrate(batches)
    moved.calibrate(batches)
    torch.testing.assert_close(made_there.outputs.ranges.cpu(), moved.outputs.ranges.cpu())
    assert evaluate(made_there, batches, FLWC(steps=2), progress=False).attacked_accuracy < 1


def test_bounds_follow_the_ranges_of_outputs_to_another_device(net, batches):
    """Lightning moves a network back to the CPU after a training, and there again for the next."""
    crossbar = Crossbar(copy.deepcopy(net).eval(), 0.01, activation_bits=6).double()
    crossbar.calibrate([(images / 2, labels) for images, labels in batches])
    bounds = IntervalBounds(crossbar)
    crossbar.to(DEVICE, torch.float32)
    lower = [(images.float(), labels) for images, labels in batches]
    crossbar.calibrate(lower)
    bounds.within(crossbar.box)
    images, labels = (t.to(DEVICE) for t in lower[0])
    torch.testing.assert_close(bounds.margins(images, labels), IntervalBounds(crossbar).margins(images, labels))


def test_an_attack_starts_from_a_chip_that_lies_elsewhere(net, batches):
    crossbar = on(DEVICE, net)
    found = FLWC(steps=4)(crossbar, batches, progress=False)
    start = {name: d.cpu() for name, d in found.perturbation.items()}
    assert FLWC(steps=1)(crossbar, batches, start=start, progress=False).accuracy <= found.accuracy


DEVICES = {
    "table": {"thg": Tolerance([0, 0.5, 1], [-0.01, -0.03, -0.05], [0.02, 0.02, 0.04])},
    "of each weight": {"thg": {"0.weight": torch.full((6, 2, 3, 3), 0.05), "4.weight": torch.full((4, 54), 0.04)}},
    "pair": {"thg": 0.03, "mapping": DeviceMapping(pair=True, cut_off=True)},
    "slices": {"thg": 0.02, "weight_bits": 4, "mapping": DeviceMapping(device_bits=2)},
    "stuck": {"thg": 0.02, "stuck": {"4.weight": torch.tensor([1.0] + 53 * [torch.nan]).expand(4, 54)}},
}


@pytest.mark.parametrize("name", DEVICES)
def test_devices_of_any_kind_have_the_same_box(name, net, batches):
    there, here = (Crossbar(copy.deepcopy(net).to(device), **DEVICES[name]) for device in (DEVICE, "cpu"))
    later = Crossbar(copy.deepcopy(net), **DEVICES[name]).to(DEVICE)
    for key, high in here.box.high.items():
        for crossbar in (there, later):
            torch.testing.assert_close(crossbar.box.high[key].cpu(), high)
            torch.testing.assert_close(crossbar.box.low[key].cpu(), here.box.low[key])
            torch.testing.assert_close(crossbar.sigma()[key].cpu(), here.sigma()[key])
    for sampler in ("truncated_gaussian", "programmed"):
        attack = MonteCarlo(instances=2, sampler=sampler)
        assert attack(there, batches, progress=False).accuracy == pytest.approx(
            attack(here, batches, progress=False).accuracy, abs=0.02
        )
    assert (
        certify(there, batches, "linear").accuracy
        <= evaluate(later, batches, LWC(epochs=2), progress=False).attacked_accuracy
    )


def test_a_chip_is_read_searched_and_programmed_again(net, batches):
    crossbar = on(DEVICE, net)
    chip = {name: 3 * d.cpu() for name, d in FLWC()(crossbar, batches, progress=False).perturbation.items()}
    assert evaluate(crossbar, batches, FLWC(steps=2), chip=chip, progress=False).chip.failed
    clean = accuracy(crossbar, batches)
    again = reprogram(crossbar, batches, chip, clean)
    assert again.accuracy_before < clean and (again.weights is None or again.weights > 0)
    answer = tolerance(crossbar, batches, 0.8, attack=FLWC(steps=4), where=True, precision=0.3, progress=False)
    assert answer.broken_thg
    for shared in answer.shared.values():
        crossbar.thg = shared.thg
        assert FLWC(steps=4)(crossbar, batches, progress=False).feasible
