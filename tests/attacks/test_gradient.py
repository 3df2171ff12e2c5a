import torch
from torch import nn

from worstcase import Crossbar
from worstcase.attacks.gradient import gradient
from worstcase.objectives import cross_entropy


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.used(x)


def test_it_is_that_of_the_sum_over_the_batch_at_the_perturbed_weights():
    """d/dW of the sum of log softmax(W x)_t is (onehot - softmax) x^T."""
    torch.manual_seed(0)
    net = Net().double()
    crossbar = Crossbar(net, 0.3)
    images, labels = torch.randn(5, 4, dtype=torch.double), torch.tensor([0, 2, 1, 1, 0])
    d = crossbar.box.sample("vertex")
    found, logits, answers = gradient(crossbar, cross_entropy, d, images, labels)
    expected = images @ (net.used.weight + d["used.weight"]).T + net.used.bias
    torch.testing.assert_close(logits, expected.detach())
    by_hand = (torch.eye(3, dtype=torch.double)[labels] - logits.softmax(1)).T @ images
    torch.testing.assert_close(found["used.weight"], by_hand)
    assert torch.equal(answers, labels)
    assert found.keys() == d.keys() and not found["unused.weight"].any()
    assert not logits.requires_grad and not any(g.requires_grad for g in found.values())
    assert all(p.grad is None for p in net.parameters()) and not any(x.requires_grad for x in d.values())
