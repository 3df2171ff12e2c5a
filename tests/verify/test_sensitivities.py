"""Sensitivities where they are known."""

import pytest
import torch
from torch import nn

from worstcase import Crossbar
from worstcase.verify import sensitivities as by


def one_layer():
    torch.manual_seed(0)
    crossbar = Crossbar(nn.Linear(4, 3, bias=False, dtype=torch.double), 0.1)
    images, labels = torch.randn(6, 4, dtype=torch.double), torch.tensor([0, 1, 2, 0, 1, 2])
    return crossbar, images, labels


def test_the_gradient_by_hand():
    crossbar, images, labels = one_layer()
    weight = crossbar.net.weight.detach()
    softmax = (images @ weight.T).softmax(1)
    expected = ((softmax - nn.functional.one_hot(labels, 3)).T @ images).abs() * weight.abs().max()
    torch.testing.assert_close(by.by_gradient(crossbar, [(images, labels)])["weight"], expected)


def test_the_second_derivative_by_hand(monkeypatch):
    """Of W[k, j] it is the sum of p_k (1 - p_k) x_j^2 over the images."""
    monkeypatch.setattr(by, "DRAWS", 4000)
    crossbar, images, labels = one_layer()
    weight = crossbar.net.weight.detach()
    p = (images @ weight.T).softmax(1)
    expected = (p * (1 - p)).T @ images.square() * weight.square()
    found = by.by_second_derivative(crossbar, [(images, labels)])["weight"]
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.05 * expected.max().item())


def test_all_have_the_shapes_of_the_weights_and_are_not_negative(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    for sensitivity in (
        by.by_gradient, by.by_second_derivative, by.by_magnitude, by.at_random, by.first_and_last, by.the_same,
    ):  # fmt: skip
        found = sensitivity(crossbar, small_batches)
        for name, weight in crossbar.programmed().items():
            assert found[name].shape == weight.shape and (found[name] >= 0).all() and found[name].isfinite().all()
    means = by.of_each_array(by.by_gradient(crossbar, small_batches))
    assert all(len(one.unique()) == 1 for one in means.values())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("sensitivity", [by.by_gradient, by.by_second_derivative])
def test_they_are_the_same_where_the_caller_has_no_gradients(sensitivity, mode, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.05)
    expected = sensitivity(crossbar, small_batches)
    with mode():
        found = sensitivity(crossbar, small_batches)
    assert all(bool(one.any()) and torch.equal(one, found[name]) for name, one in expected.items())
