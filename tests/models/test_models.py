import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.models import ConvNet, LeNet, ResNet18


def shapes(net):
    return [tuple(module.weight.shape) for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def test_lenet_has_the_authors_layout():
    assert shapes(LeNet()) == [(6, 1, 3, 3), (16, 6, 3, 3), (120, 784), (84, 120), (10, 84)]
    assert shapes(LeNet(variant="lecun98")) == [(6, 1, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert LeNet(7, "lecun98")(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


def test_convnet_has_the_papers_layout():
    convolutions = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256)]
    linear = [(1024, 4096), (1024, 1024), (10, 1024)]
    assert shapes(ConvNet()) == [(*sizes, 3, 3) for sizes in convolutions] + linear
    assert not any(isinstance(module, nn.BatchNorm2d) for module in ConvNet(width=0.1).modules())


def test_resnet18_has_eighteen_programmed_layers_and_three_programmed_shortcuts():
    net = ResNet18(num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == 11_173_962  # of the usual CIFAR-10 variant
    names = Crossbar(net, 0.1).programmed()
    shortcuts = [name for name in names if "downsample" in name]
    assert len(shortcuts) == 3 and len(names) - len(shortcuts) == 18


@pytest.mark.parametrize(("size", "classes"), [(32, 10), (64, 200)])
def test_resnet18_keeps_the_resolution_at_its_stem(size, classes):
    net = ResNet18(classes, width=0.0625).eval()
    assert net.conv1(torch.zeros(1, 3, size, size)).shape[-1] == size
    assert net(torch.zeros(2, 3, size, size)).shape == (2, classes)


@pytest.mark.parametrize("net", [ConvNet, ResNet18])
def test_width_scales_every_hidden_size(net):
    wide, narrow = shapes(net(width=0.5)), shapes(net(width=0.25))
    assert all(w[0] == 2 * n[0] for w, n in zip(wide[:-1], narrow[:-1], strict=True))
    for width in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"width={width}: must be above 0"):
            net(width=width)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="must be authors or lecun98"):
        LeNet(variant="2024")
