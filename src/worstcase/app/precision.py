"""Where bfloat16, which is there to be quicker, is slower."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


def warn_of_slow_bfloat16(settings: dict[str, Any], device: str) -> None:
    """Say before the work begins which setting makes this job slower than float32 is.

    On a CPU, PyTorch computes bfloat16 quickly with AVX-512 only. With AVX2 a training step takes 4 to 12 times as
    long as in float32 (docs/performance.md).

    Args:
        settings: of the job.
        device: the type of the one that computes, such as ``cpu``.
    """
    import torch

    if device != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return
    precision = settings.get("trainer", {}).get("precision")
    slow = [f"trainer.precision={precision}"] if str(precision).startswith("bf16") else []
    slow += ["search_dtype=bfloat16"] if settings["search_dtype"] else []
    if slow:
        message = "%s: this processor has no AVX-512, so bfloat16 is much slower than float32; leave it out"
        log.warning(message, " ".join(slow))
