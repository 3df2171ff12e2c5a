"""What the network itself answers, and what an attack finds of it."""

import copy

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from worstcase import attacks


class UsedWeights(TorchFunctionMode):
    """Notes the second argument of each linear layer and convolution that runs."""

    def __init__(self):
        super().__init__()
        self.used = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.linear, F.conv1d, F.conv2d, torch.conv1d, torch.conv2d) and len(args) > 1:
            self.used.append(args[1].detach().clone())
        return function(*args, **(kwargs or {}))


def used_weights(run):
    with UsedWeights() as mode, torch.no_grad():
        run()
    return mode.used


def run(net, inputs):
    with torch.no_grad():
        out = net.eval()(*inputs) if isinstance(inputs, tuple) else net.eval()(inputs)
    return out[0] if isinstance(out, tuple) else out


def own_labels(net, inputs):
    """What the network answers itself: it is right everywhere as programmed."""
    return run(net, inputs).argmax(1)


def attacked(crossbar, inputs, attack=None, **options):
    """What an attack finds of a network that is right everywhere."""
    labels = own_labels(copy.deepcopy(crossbar.net), inputs)
    return (attack or attacks.FLWC(steps=5))(crossbar, [(inputs, labels)], progress=False, **options), labels
