"""Warnings of a precision that is slower than float32."""

import logging

import pytest
import torch

from worstcase.app.precision import warn_of_slow_bfloat16

IN_FLOAT32 = {"search_dtype": None, "trainer": {}}
TRAINING = {"search_dtype": None, "trainer": {"precision": "bf16-mixed"}}
SEARCH = {"search_dtype": "bfloat16"}
BOTH = TRAINING | SEARCH


@pytest.mark.parametrize(
    ("settings", "device", "processor", "named"),
    [
        (TRAINING, "cpu", "AVX2", "trainer.precision=bf16-mixed: this processor has no AVX-512"),
        (SEARCH, "cpu", "AVX2", "search_dtype=bfloat16: this"),
        (BOTH, "cpu", "AVX2", "trainer.precision=bf16-mixed search_dtype=bfloat16: this processor"),
        (BOTH, "cpu", "DEFAULT", None),  # such as an ARM processor
        (IN_FLOAT32, "cpu", "AVX2", None),
        (BOTH, "cpu", "AVX512", None),
        (BOTH, "cuda", "AVX2", None),
    ],
)
def test_bfloat16_is_warned_of_where_it_is_slower(settings, device, processor, named, monkeypatch, caplog):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    with caplog.at_level(logging.WARNING, logger="worstcase"):
        warn_of_slow_bfloat16(settings, device)
    if named is None:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert message.startswith(named)
