import copy

import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.chip.quantisation import gaussian_clip, quantise
from worstcase.models import LeNet

# range 1.5, two bits: 3 levels a side, a step of 0.5; ties go to the even level
TABLE = {
    -9.0: -1.5,
    -1.5: -1.5,
    -1.3: -1.5,
    -0.75: -1.0,
    -0.25: 0.0,
    0.0: 0.0,
    0.2: 0.0,
    0.3: 0.5,
    1.2: 1.0,
    1.6: 1.5,
}


def test_levels_by_hand():
    x = torch.tensor(list(TABLE))
    assert quantise(x, torch.tensor(1.5), 2).tolist() == list(TABLE.values())


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_idempotent_and_at_most_half_a_step_off(bits, dtype):
    torch.manual_seed(0)
    x = torch.randn(10_000, dtype=dtype)
    full_range = x.abs().max()
    once = quantise(x, full_range, bits)
    assert torch.equal(quantise(once, full_range, bits), once)
    assert (once - x).abs().max() <= full_range / (2**bits - 1) / 2 * (1 + 1e-5)
    assert len(once.unique()) <= 2 ** (bits + 1) - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("largest", [4e-5, 0.0025, 0.7, 6e4])
def test_in_few_bits_each_level_is_the_nearest_number_to_it(dtype, largest):
    x = (torch.linspace(-1, 1, 1001) * largest).to(dtype)
    full_range = x.abs().max()
    found = quantise(x, full_range, 8)
    assert found.dtype == dtype and torch.equal(found, quantise(x.float(), full_range.float(), 8).to(dtype))
    assert found.abs().max() == full_range


def test_gradient_is_straight_through_also_beyond_the_range():
    x = torch.tensor([-9.0, 0.2, 1.4, 9.0], requires_grad=True)
    (quantise(x, torch.tensor(1.5), 2) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_a_range_of_zero_gives_zeros():
    assert quantise(torch.zeros(3), torch.tensor(0.0), 4).tolist() == [0.0] * 3


def test_forward_of_a_layer_is_integer_arithmetic():
    """Weights, biases and outputs are whole multiples of their steps, computed here with integers."""
    torch.manual_seed(0)
    layer = nn.Linear(5, 3, dtype=torch.double)
    crossbar = Crossbar(layer, 0.1, weight_bits=3, activation_bits=4).eval()
    crossbar.outputs.ranges.fill_(2.0)
    x = torch.randint(-4, 5, (20, 5))
    weight_step = layer.weight.detach().abs().max() / 7
    bias_step = layer.bias.detach().abs().max() / 7
    weights = (layer.weight.detach() / weight_step).round().long()
    biases = (layer.bias.detach() / bias_step).round().long()
    exact = (x @ weights.T).double() * weight_step + biases.double() * bias_step
    levels = (exact / (2.0 / 15)).round().clamp(-15, 15)
    torch.testing.assert_close(crossbar(x.double()), levels * (2.0 / 15))
    assert (levels.abs() == 15).any()  # some are clamped


def test_a_perturbation_comes_after_the_weight_quantiser():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.3]]))
    crossbar = Crossbar(layer, 0.1, weight_bits=1)
    assert crossbar.programmed()["weight"].tolist() == [[1.0, 0.0]]
    assert crossbar.bound()["weight"] == pytest.approx(0.1)
    out = crossbar(torch.tensor([[0.0, 1.0]]), {"weight": torch.tensor([[0.0, 0.07]])})
    assert out.item() == pytest.approx(0.07)


def test_without_bits_the_network_is_as_it_was(small_net):
    crossbar = Crossbar(small_net, 0.1).eval()
    images = torch.randn(4, 1, 6, 6)
    torch.testing.assert_close(crossbar(images), small_net(images))  # other layouts of the images round otherwise
    assert crossbar.state_dict().keys() == {f"net.{key}" for key in small_net.state_dict()}


def test_output_ranges_follow_training_and_stand_still_in_eval_mode():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    crossbar = Crossbar(layer, 0.1, activation_bits=8)
    crossbar.train()(torch.tensor([[-2.0]]))
    assert crossbar.outputs.ranges.tolist() == [2.0]
    crossbar(torch.tensor([[4.0]]))
    assert crossbar.outputs.ranges.tolist() == pytest.approx([0.9 * 2 + 0.1 * 4])
    fixed = crossbar.outputs.ranges.clone()
    assert crossbar.eval()(torch.tensor([[9.0]])).item() == pytest.approx(fixed.item())
    assert torch.equal(crossbar.outputs.ranges, fixed)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_is_the_best_for_a_gaussian_and_never_beyond_the_largest_output(bits):
    x = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0)) * 3

    def error(full_range):
        return (quantise(x, torch.tensor(full_range), bits) - x).square().mean().item()

    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    crossbar = Crossbar(layer, 0.1, activation_bits=bits)
    crossbar.train()(x)
    found = crossbar.outputs.ranges.item()
    assert found == pytest.approx(3 * gaussian_clip(bits), rel=0.01)
    assert error(found) <= min(error(0.8 * found), error(1.2 * found))
    crossbar = Crossbar(layer, 0.1, activation_bits=bits)
    crossbar.train()(torch.tensor([[5.0], [-5.0]]))
    assert crossbar.outputs.ranges.item() == 5.0


def test_unknown_ranges_are_an_error_and_calibration_sets_them(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1, weight_bits=4, activation_bits=8).eval()
    images = small_batches[0][0]
    with pytest.raises(RuntimeError, match="calibrate"):
        crossbar(images)
    statistics = small_net[1].running_mean.clone()
    crossbar.calibrate(small_batches)
    assert torch.equal(small_net[1].running_mean, statistics)
    assert not any(module.training for module in crossbar.modules())
    agree = crossbar(images).argmax(1) == small_net(images).argmax(1)
    assert agree.float().mean() > 0.7


def test_ranges_that_became_unknown_are_noticed(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1, activation_bits=4).eval()
    unknown = copy.deepcopy(crossbar.state_dict())
    crossbar.calibrate(small_batches)
    crossbar(small_batches[0][0])
    with pytest.raises(ValueError, match="calibrate: there were no batches"):
        crossbar.calibrate(iter(()))
    crossbar.calibrate(small_batches)
    crossbar(small_batches[0][0])
    crossbar.load_state_dict(unknown)
    with pytest.raises(RuntimeError, match="calibrate"):
        crossbar(small_batches[0][0])


def test_the_users_network_is_left_without_hooks_also_after_an_error(small_net):
    crossbar = Crossbar(small_net, 0.1, activation_bits=8)
    crossbar(torch.randn(4, 1, 6, 6))
    with pytest.raises(RuntimeError):
        crossbar(torch.randn(4, 3, 6, 6))
    assert not any(module._forward_hooks for module in small_net.modules())


def test_attention_is_quantised_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    crossbar = Crossbar(layer, 0.1, weight_bits=8, activation_bits=8)
    crossbar.calibrate([(torch.randn(4, 3, 8), torch.zeros(4))])
    known = dict(zip((n for n, _ in layer.named_modules() if n), crossbar.outputs.ranges, strict=False))
    assert crossbar.outputs.ranges.isfinite().sum() >= 3, known
    assert crossbar(torch.randn(2, 3, 8)).shape == (2, 3, 8)


@pytest.mark.parametrize("bits", [0, 17, 1024, 4.0])
def test_bits_of_the_quantiser_out_of_range(bits):
    with pytest.raises(ValueError, match=f"bits={bits}: must be a whole number from 1 to 16"):
        quantise(torch.ones(2), torch.tensor(1.0), bits)


@pytest.mark.parametrize("bits", [0, 17, 2.5, True])
@pytest.mark.parametrize("which", ["weight_bits", "activation_bits"])
def test_bits_out_of_range(which, bits):
    with pytest.raises(ValueError, match=f"{which}={bits}: must be a whole number from 1 to 16"):
        Crossbar(LeNet(), 0.1, **{which: bits})
