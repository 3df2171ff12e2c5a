"""Pulses of write-verify shared out among the weights, by the settings of a job: pulses= and share=."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worstcase.chip.crossbar import Crossbar
    from worstcase.data import ImageDataModule
    from worstcase.verify.cost import Programming
    from worstcase.verify.sharing import Tolerances


def programming(cfg: Mapping[str, Any], crossbar: Crossbar) -> Programming:
    """How weights are programmed, by conf/programming.yaml."""
    from worstcase.verify.cost import Programming

    said = cfg["programming"]
    bits = {
        "weight_bits": said["weight_bits"] or crossbar.weight_bits or Programming.weight_bits,
        "device_bits": crossbar.mapping.device_bits or said["device_bits"],
    }
    try:
        programming = Programming(**{**said, **bits})
    except ValueError as error:
        raise ValueError(f"programming.{error}") from None
    return Programming.of(crossbar, programming)


def check_pulses(cfg: Mapping[str, Any], crossbar: Crossbar) -> None:
    """Refuse pulses that cannot be shared out, before any long work.

    Raises:
        ValueError: there are fewer than a weight has devices, or weights are held so that they cannot be counted.
    """
    from worstcase.verify.sharing import check_countable

    check_countable(crossbar)
    programming(cfg, crossbar).bound_of(cfg["pulses"])


def shared_out(cfg: Mapping[str, Any], crossbar: Crossbar, datamodule: ImageDataModule) -> Tolerances:
    """Tolerances for so many pulses, which validation images tell: they never see the test set."""
    from worstcase.verify.sharing import BY_DATA, tightened

    options = {"by": cfg["share"], "programming": programming(cfg, crossbar), "seed": cfg["seed"]}
    images = datamodule.val_dataloader() if cfg["share"] in BY_DATA else ()
    return tightened(crossbar, images, cfg["pulses"], **options)
