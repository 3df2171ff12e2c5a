"""What PyTorch rounds the factors of float32 products to: ``tf32``, ``bf16``, or neither (``ieee``, ``none``).

Since 2.9 each backend has a setting of its own, and the older functions raise where these were set.
"""

from __future__ import annotations

from types import ModuleType

import torch


def of_cudnn() -> set[str]:
    """In convolutions and recurrent layers on CUDA."""
    cudnn = torch.backends.cudnn
    if hasattr(cudnn, "conv"):
        return _precisions(cudnn, "conv", "rnn")
    return {"tf32" if cudnn.allow_tf32 else "ieee"}


def of_others() -> set[str]:
    """In matrix products, and in all products on a CPU."""
    cuda, cpu = torch.backends.cuda, torch.backends.mkldnn
    if hasattr(cpu, "conv"):
        return _precisions(cuda, "matmul") | _precisions(cpu, "matmul", "conv", "rnn")
    return {{"high": "tf32", "medium": "bf16"}.get(torch.get_float32_matmul_precision(), "ieee")}


def _precisions(backend: ModuleType, *operations: str) -> set[str]:
    return {getattr(backend, name).fp32_precision for name in operations}
