import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from worstcase import Crossbar, Tolerance
from worstcase.chip.memory_layout import takes_channels_last
from worstcase.chip.modes import evaluating
from worstcase.models import LeNet, ResNet18


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bound_is_thg_times_the_largest_weight_of_each_layer_rounded_toward_zero(dtype):
    torch.manual_seed(0)
    for thg in torch.rand(200, dtype=torch.double).tolist():
        layer = nn.Linear(3, 2, bias=False).to(dtype)
        crossbar = Crossbar(layer, thg)
        exact = thg * layer.weight.detach().double().abs().max()
        bound = crossbar.bound()["weight"]
        assert bound.dtype == dtype and not bound.requires_grad
        assert bound.double() / layer.weight.detach().double().abs().max() <= thg
        above = torch.nextafter(bound, torch.full_like(bound, torch.inf)).double()
        assert exact <= above
        assert crossbar.max_relative_perturbation({"weight": bound.expand(2, 3)}) <= thg


def test_bound_follows_each_layers_own_weights_as_they_are_now():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    crossbar = Crossbar(net, 0.5)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -4.0], [2.0, 0.0]]))
        net[1].weight.fill_(-0.5)
    assert {name: b.item() for name, b in crossbar.bound().items()} == {"0.weight": 2.0, "1.weight": 0.25}
    crossbar.thg = 0.25
    assert crossbar.bound()["0.weight"] == 1.0


def test_unit_full_scale_is_absolute_and_may_exceed_one():
    crossbar = Crossbar(nn.Linear(2, 2), 1.5, full_scale="unit")
    assert crossbar.bound()["weight"] == 1.5


def test_a_layer_of_zeros_has_bound_zero():
    net = nn.Linear(2, 2)
    nn.init.zeros_(net.weight)
    crossbar = Crossbar(net, 0.5)
    assert crossbar.bound()["weight"] == 0
    assert crossbar.max_relative_perturbation(crossbar.box.zero()) == 0


def test_perturbed_forward_equals_a_network_with_those_weights(small_net):
    crossbar = Crossbar(small_net, 0.3).eval()
    perturbation = crossbar.box.sample("vertex")
    images = torch.randn(5, 1, 6, 6)
    before = crossbar(images)
    found = crossbar(images, perturbation)
    with torch.no_grad():
        for name, deviation in perturbation.items():
            small_net.get_parameter(name).add_(deviation)
    torch.testing.assert_close(found, small_net(images))  # other layouts of the images round otherwise
    assert (before - found).abs().max() > 0.01


def test_images_are_laid_out_channels_last_where_the_network_computes_so(small_net):
    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    formats = []
    small_net[0].register_forward_hook(
        lambda module, inputs, out: formats.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    images, statistics = torch.randn(5, 1, 6, 6), small_net[1].running_mean.clone()
    expected = small_net.eval()(images)
    torch.testing.assert_close(Crossbar(small_net, 0.1)(images), expected)
    tried, looked = [True, False], [*[True] * 6, False, False]  # the last beside plain PyTorch
    assert formats == [False, *tried, *looked, True]
    small_net[3], formats[:] = View(), []
    crossbar = Crossbar(small_net, 0.1)
    assert torch.equal(crossbar(images), expected) and torch.equal(crossbar(images), expected)
    assert formats == [True, *[False] * 10]
    small_net.train()
    takes_channels_last(small_net, images)
    assert torch.equal(small_net[1].running_mean, statistics) and small_net[1].training


def test_images_stay_as_they_are_where_the_network_computes_something_else_of_another_order():
    class Patches(nn.Conv2d):
        def forward(self, x):
            return super().forward(x.as_strided((len(x), 3, 4, 4), (48, 16, 4, 1))).mean((2, 3))

    net, images = Patches(3, 5, 3), torch.randn(4, 3, 4, 4)
    torch.testing.assert_close(Crossbar(net, 0.1)(images), net(images))


def test_narrow_strided_1x1_convolutions_are_not_computed_channels_last():
    """oneDNN's issue 6035: gradients of the weights of 8 channels at 64x64 ended the process."""
    images = torch.rand(2, 3, 64, 64)
    assert Crossbar(ResNet18(width=0.25), 0.1).laid_out(images).is_contiguous(memory_format=torch.channels_last)
    narrow = ResNet18(width=0.125)
    assert Crossbar(narrow, 0.1).laid_out(images) is images
    crossbar, augmented = Crossbar(narrow, 0.1), images.clone(memory_format=torch.channels_last)
    assert crossbar.laid_out(augmented).is_contiguous()
    weights = [weight for weight in narrow.parameters() if weight.ndim == 4]
    found, expected = (
        torch.autograd.grad(outputs.square().sum(), weights) for outputs in (crossbar(augmented), narrow(images))
    )
    torch.testing.assert_close(found, expected)


def test_forward_is_differentiable_in_the_perturbation_also_where_weights_are_frozen():
    layer = nn.Linear(2, 1, bias=False).requires_grad_(False)
    crossbar = Crossbar(layer, 0.1)
    perturbation = {"weight": torch.zeros(1, 2, requires_grad=True)}
    crossbar(torch.tensor([[3.0, 5.0]]), perturbation).sum().backward()
    assert perturbation["weight"].grad.tolist() == [[3.0, 5.0]]


def test_weights_that_meet_an_input_in_a_product_are_programmed():
    names = list(Crossbar(LeNet(), 0.1).programmed())
    assert names == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc3.weight"]
    mixed = nn.ModuleDict({"embed": nn.Embedding(3, 2), "norm": nn.BatchNorm1d(2), "out": nn.Linear(2, 2)})
    assert list(Crossbar(mixed, 0.1).programmed()) == ["out.weight"]


def test_attention_projections_are_programmed():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    crossbar = Crossbar(layer, 0.1).eval()
    assert "self_attn.in_proj_weight" in crossbar.programmed()
    x = torch.randn(2, 3, 8)
    only_attention = crossbar.box.zero()
    only_attention["self_attn.in_proj_weight"] = crossbar.box.sample("vertex")["self_attn.in_proj_weight"]
    with torch.no_grad():
        assert not torch.equal(crossbar(x), crossbar(x, only_attention))


def test_a_shared_weight_is_one_array_with_one_deviation():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[1].weight = net[0].weight
    crossbar = Crossbar(net, 0.5)
    assert list(crossbar.programmed()) == ["0.weight"]
    deviated = net[0].weight + 0.1
    x = torch.ones(1, 2)
    torch.testing.assert_close(crossbar(x, {"0.weight": torch.full((2, 2), 0.1)}), x @ deviated.T @ deviated.T)


def test_layers_can_be_chosen_and_left_out():
    assert list(Crossbar(LeNet(), 0.1, layers=["conv*"]).programmed()) == ["conv1.weight", "conv2.weight"]
    assert "fc3.weight" not in Crossbar(LeNet(), 0.1, exclude=["fc3"]).programmed()
    with pytest.raises(ValueError, match=r"no layer with a weight is named 'head'; there are conv1, conv2"):
        Crossbar(LeNet(), 0.1, layers=["head"])


@pytest.mark.parametrize("setting", ["layers", "exclude", "arrays"])
def test_a_string_in_place_of_patterns_is_not_taken_letter_by_letter(setting):
    with pytest.raises(ValueError, match=rf"^{setting}='0\*': must be a list of patterns, such as \['0\*'\]$"):
        Crossbar(nn.Sequential(nn.Linear(2, 2)), 0.1, **{setting: "0*"})


@pytest.mark.parametrize(
    ("net", "options"), [(nn.ReLU(), {}), (nn.BatchNorm1d(3), {}), (nn.Linear(2, 2), {"exclude": ["*"]})]
)
def test_a_network_without_a_weight_to_perturb_is_refused(net, options):
    with pytest.raises(ValueError, match="has no weight to perturb"):
        Crossbar(net, 0.1, **options)


def test_a_computed_weight_that_cannot_be_followed_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"'0' computes its weight_hh_l0 .* more than one input.*remove_param"):
        Crossbar(nn.Sequential(weight_norm(nn.LSTM(2, 2), "weight_hh_l0")), 0.1)


@pytest.mark.parametrize("thg", [-0.1, 1.1, float("nan"), float("inf")])
def test_thg_out_of_range_is_refused(thg):
    with pytest.raises(ValueError, match="must be 0 <= thg <= 1"):
        Crossbar(nn.Linear(2, 2), thg)
    crossbar = Crossbar(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match="must be 0 <= thg <= 1"):
        crossbar.thg = thg


def test_thg_is_another_within_a_block_and_then_what_it_was():
    crossbar = Crossbar(nn.Linear(2, 2), 0.1)
    before = crossbar.bound()["weight"]
    with crossbar.bounded_by(0.2):
        assert crossbar.thg == 0.2 and crossbar.bound()["weight"] > before
        with crossbar.bounded_by(0.0):
            assert crossbar.thg == 0
        assert crossbar.thg == 0.2
    assert crossbar.thg == 0.1
    with pytest.raises(KeyError), crossbar.bounded_by(0.3):
        raise KeyError
    assert crossbar.thg == 0.1
    with pytest.raises(ValueError, match=r"thg=1\.5: must be"), crossbar.bounded_by(1.5):
        pass
    assert crossbar.thg == 0.1


def test_a_number_of_numpy_scales_a_table_as_any_number_does():
    crossbar = Crossbar(nn.Linear(2, 2), Tolerance([0, 1], [-0.01, -0.05], [0.02, 0.02]))
    for number in (0.03, np.float64(0.03), np.float32(0.03), torch.tensor(0.03)):
        with crossbar.bounded_by(number):
            scaled = crossbar.tolerance
            assert scaled.lower == pytest.approx([-0.006, -0.03]) and scaled.upper == pytest.approx([0.012, 0.012])


def test_a_chip_of_any_layout_can_be_saved(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 4)).to(
        memory_format=torch.channels_last
    )
    net[2].weight = nn.Parameter(torch.randn(8 * 16, 4).T)
    crossbar = Crossbar(net, 0.1).eval()
    d = crossbar.box.sample("vertex")
    save_file(crossbar.chip(d), tmp_path / "chip.safetensors")
    x = torch.randn(2, 3, 6, 6)
    expected = crossbar(x, d)
    net.load_state_dict(load_file(tmp_path / "chip.safetensors"))
    torch.testing.assert_close(net(x), expected)


def test_names_of_a_perturbation_must_be_those_of_the_arrays():
    with pytest.raises(KeyError, match="the arrays are"):
        Crossbar(nn.Linear(2, 2), 0.1)(torch.ones(1, 2), {"bias": torch.zeros(2)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deviations_are_added_in_float32_and_cast_toward_the_weight(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(60, 50, bias=False).to(dtype)
    deviation = {"weight": (torch.rand(50, 60) - 0.5) / 10}
    deviation["weight"].requires_grad_()
    weight = layer.weight.detach()
    (chip,) = Crossbar(layer, 0.1).weights(deviation).values()
    assert chip.dtype == dtype
    left = (chip - weight.float()) / deviation["weight"]
    assert left.min() >= 0 and left.max() <= 1 and left.mean() > 0.9
    up = torch.nextafter(chip, torch.where(deviation["weight"] > 0, torch.inf, -torch.inf).to(dtype))
    assert ((up.double() - weight.double()).abs() > deviation["weight"].double().abs()).all(), "one step more"
    chip.float().sum().backward()
    assert (deviation["weight"].grad == 1).all()


def test_evaluating_gives_each_submodule_its_mode_back(small_net):
    small_net.train()
    small_net[1].eval()
    modes = [module.training for module in small_net.modules()]
    with evaluating(small_net):
        assert not any(module.training for module in small_net.modules())
    assert [module.training for module in small_net.modules()] == modes


@pytest.mark.parametrize("computed", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal])
@pytest.mark.parametrize("before", [False, True])
def test_a_transformer_deviates_where_no_gradient_is_asked_for(computed, before):
    """There PyTorch would pass by its layers, in which the deviation of a weight that they compute is added."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=before), nn.Linear(8, 3)
    ).eval()
    plain = copy.deepcopy(net)
    for layer in (net[0].linear1, net[0].linear2):
        computed(layer)
    crossbar, x = Crossbar(net, 0.5, layers=["0.linear*"]), torch.randn(6, 5, 8)
    chip = crossbar.box.sample("vertex", torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, deviation in chip.items():
            plain.get_parameter(name).copy_(net.get_submodule(name.removesuffix(".weight")).weight + deviation)
        found = crossbar(x, chip)
        assert not torch.allclose(found, crossbar(x), atol=1e-2)
    torch.testing.assert_close(found, crossbar(x, chip).detach())
    torch.testing.assert_close(found, plain(x).detach())
    assert torch.backends.mha.get_fastpath_enabled()
