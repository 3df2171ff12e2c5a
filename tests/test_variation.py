import math

import torch

from worstcase.variation import right_censored_gaussian

SAMPLES = 200_000


def test_right_censored_gaussian_follows_eq_11():
    torch.manual_seed(0)
    sigma, threshold = 0.2, 0.7
    like = {"w": torch.empty(SAMPLES)}
    noise = right_censored_gaussian(like, {"w": torch.tensor(sigma, dtype=torch.double)}, threshold)["w"]
    cut = torch.tensor(threshold) * torch.tensor(sigma)
    assert noise.max() == cut
    above = 0.5 * math.erfc(threshold / math.sqrt(2))
    assert abs((noise == cut).double().mean().item() - above) < 4 * math.sqrt(above / SAMPLES)
    density = math.exp(-(threshold**2) / 2) / math.sqrt(2 * math.pi)
    mean = sigma * (threshold * above - density)
    assert abs(noise.double().mean().item() - mean) < 4 * sigma / math.sqrt(SAMPLES)
    below = noise[noise < 0].double()  # the left half is a plain Gaussian's
    assert abs(below.square().mean().sqrt().item() / sigma - 1) < 0.01


def test_without_sigma_there_is_no_noise():
    noise = right_censored_gaussian({"w": torch.empty(9)}, {"w": torch.tensor(0.0)}, 1.0)["w"]
    assert not noise.any()
