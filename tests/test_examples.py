import subprocess
import sys

import torch
from conftest import REPOSITORY, environment

from examples.resnet20 import resnet20
from worstcase import Crossbar


def test_resnet20_is_the_published_one():
    """0.27 million parameters (He et al., 2016), and the names that its published weights have."""
    net = resnet20()
    assert sum(p.numel() for p in net.parameters()) == 269_722
    assert {
        "conv1.weight",
        "layer1.0.bn2.weight",
        "layer3.2.conv2.weight",
        "linear.bias",
    } <= net.state_dict().keys()
    assert len(Crossbar(net, 0.01).programmed()) == 20
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_your_own_network():
    done = subprocess.run(
        [sys.executable, "examples/your_own_network.py"],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    clean, lowest = (float(line.split(": ")[1].split("%")[0]) for line in shown[:2])
    assert clean > 80 and lowest < clean - 10
    assert shown[2].startswith("true classes:") and shown[3].startswith("its answers:")
