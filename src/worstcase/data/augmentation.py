"""Random augmentation of batches. Each image gets its own draw from PyTorch's default generator.

That is the CPU's wherever the images are, so a GPU sees the same images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def flip_and_crop(images: Tensor, padding: int) -> Tensor:
    """Flip each image left to right with probability 1/2, pad it with zeros, and crop it to its size at random.

    Args:
        images: (N, C, H, W).
        padding: pixels added at each side.

    Example:
        >>> flip_and_crop(torch.ones(2, 3, 8, 8), padding=2).shape
        torch.Size([2, 3, 8, 8])
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(height)
    columns = torch.randint(2 * padding + 1, (n, 1)) + torch.arange(width)
    columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
    image = torch.arange(n, device=images.device).view(n, 1, 1)
    rows, columns = rows.to(images.device), columns.to(images.device)
    return padded[image, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)


def standardise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """(images - mean) / std for each channel, in place. Images are (N, C, H, W)."""
    mean_of, std_of = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return images.sub_(mean_of).div_(std_of)
