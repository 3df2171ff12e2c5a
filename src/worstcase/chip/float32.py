"""What PyTorch rounds the factors of float32 products to: ``tf32``, ``bf16``, or neither (``ieee``, ``none``).

Since 2.9 each backend has a setting of its own, and the older functions raise where these were set.
"""

from __future__ import annotations

import torch


def of_cudnn() -> set[str]:
    """In convolutions and recurrent layers on CUDA."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return {cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision}
    return {"tf32" if cudnn.allow_tf32 else "ieee"}


def of_others() -> set[str]:
    """In matrix products, and in all products on a CPU."""
    cuda, cpu = torch.backends.cuda, torch.backends.mkldnn
    if hasattr(cpu, "conv"):
        return {of.fp32_precision for of in (cuda.matmul, cpu.matmul, cpu.conv, cpu.rnn)}
    return {{"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision(), "ieee")}
