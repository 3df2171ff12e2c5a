"""Published programming errors of devices, as tables: each with its source. Needs no PyTorch.

A standard deviation is what programming left. A write-verify tolerance is a choice: at how many standard
deviations programming stops. The default is `worstcase.chip.tolerance.SIGMAS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from worstcase.chip.tolerance import SIGMAS, Tolerance

_FIFTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Preset:
    """A device whose programming error was published."""

    device: str
    source: str
    conductance: Sequence[float]
    """Relative to the largest."""
    sigma: Sequence[float]
    """The standard deviation at each, as a fraction of the largest conductance."""

    def tolerance(self, sigmas: float = SIGMAS) -> Tolerance:
        """Write-verify that stops at so many standard deviations."""
        return Tolerance.of_sigma(self.conductance, self.sigma, sigmas)


def _percent(*sigma: float) -> list[float]:
    return [round(s / 100, 6) for s in sigma]


def _nandakumar(g: float) -> float:
    return (0.26348 + 1.9650 * g - 1.1731 * g**2) / 25


PRESETS = {
    "pcm_joshi2020": Preset(
        "PCM, after iterative programming",
        "Joshi et al., Nat. Commun. 11, 2473 (2020), Fig. 3b, as fitted in Sandia's CrossSim",
        _FIFTHS,
        _percent(1.23, 2.56, 3.52, 4.14, 4.40, 4.31),
    ),
    "pcm_nandakumar2019": Preset(
        "PCM, after iterative programming, 25 uS",
        "Nandakumar et al., ICECS 2019: 0.26348 + 1.9650 g - 1.1731 g^2 uS, as in aihwkit's PCM model",
        [row / 20 for row in range(21)],
        [_nandakumar(row / 20) for row in range(21)],
    ),
    "rram_milo2021": Preset(
        "RRAM, multilevel, after program-verify",
        "Milo et al., IRPS 2021, Fig. 4, as fitted in Sandia's CrossSim",
        _FIFTHS,
        _percent(2.47, 2.29, 2.11, 1.93, 1.74, 1.56),
    ),
    "rram_wan2022": Preset(
        "RRAM, after write-verify and relaxation",
        "Wan et al., Nature 608, 504 (2022), Extended Data Fig. 3, as fitted in Sandia's CrossSim",
        _FIFTHS,
        _percent(2.68, 5.79, 6.36, 5.55, 4.47, 4.28),
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        ValueError: there is none.

    Example:
        >>> round(preset("rram_milo2021").tolerance(sigmas=2).largest, 6)
        0.0494
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
