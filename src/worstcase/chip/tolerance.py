"""How far a device may be from its target, by the conductance that it is to have. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worstcase.checks import number, whole

if TYPE_CHECKING:
    from torch import Tensor

SIGMAS = 2.0
"""Standard deviations at which write-verify stops, if nothing else is said: 95.4 % of devices pass at once."""


@dataclass(frozen=True)
class Tolerance:
    """A table of what write-verify lets pass: a device's least and greatest deviation, by its conductance.

    Conductances are relative, 0 to 1, the largest that a weight is held with. Deviations are fractions of that
    largest one. Between two rows they are interpolated linearly.

    Args:
        conductance: in rising order, the first 0 and the last 1.
        lower: the least deviation at each, -1 to 0.
        upper: the greatest, 0 to 1.
        sigma: the standard deviation of the programming error at each, which samplers draw from; None: half the
            width.

    Raises:
        ValueError: a column does not fit, a value is out of range or not finite.

    Example:
        >>> Tolerance([0, 1], [-0.01, -0.05], [0.02, 0.02])
        Tolerance(conductance=(0.0, 1.0), lower=(-0.01, -0.05), upper=(0.02, 0.02), sigma=None)
    """

    conductance: Sequence[float]
    lower: Sequence[float]
    upper: Sequence[float]
    sigma: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if (column := getattr(self, name)) is None:
                continue
            for row, value in enumerate(column):
                of_python = value.item() if hasattr(value, "item") else value
                number(f"{name}[{row}]", of_python, low=low, high=high)
            if len(column) != len(self.conductance):
                raise ValueError(f"{name}: {len(column)} values for {len(self.conductance)} conductances")
            object.__setattr__(self, name, tuple(map(float, column)))
        if any(one >= other for one, other in zip(self.conductance, self.conductance[1:], strict=False)):
            raise ValueError("conductance: must rise from row to row")
        if len(self.conductance) < 2 or (self.conductance[0], self.conductance[-1]) != (0, 1):
            raise ValueError("conductance: must begin at 0 and end at 1, the largest; add rows for these")

    # ---- ways to say one

    @classmethod
    def of_sigma(cls, conductance: Sequence[float], sigma: Sequence[float], sigmas: float = SIGMAS) -> Tolerance:
        """Write-verify that stops at so many standard deviations of a programming error.

        Args:
            conductance: relative, 0 to 1, in rising order.
            sigma: the standard deviation at each, as a fraction of the largest conductance.
            sigmas: how many of them, above 0.

        Raises:
            ValueError: the columns do not fit, or so many are more than the largest conductance.

        Example:
            >>> Tolerance.of_sigma([0, 1], [0.01, 0.02], sigmas=2).upper
            (0.02, 0.04)
        """
        return cls(conductance, [-1.0] * len(sigma), [1.0] * len(sigma), sigma).at_sigmas(sigmas)

    @classmethod
    def of_function(cls, deviation: Callable[[float], tuple[float, float]], *, rows: int = 101) -> Tolerance:
        """The table of a function from a relative conductance to the least and the greatest deviation.

        Example:
            >>> Tolerance.of_function(lambda g: (-0.01 - 0.02 * g, 0.01), rows=3).lower
            (-0.01, -0.02, -0.03)
        """
        whole("rows", rows, least=2)
        conductance = [row / (rows - 1) for row in range(rows)]
        lower, upper = zip(*map(deviation, conductance), strict=True)
        return cls(conductance, lower, upper)

    @classmethod
    def from_csv(cls, path: str | Path, *, sigmas: float | None = None) -> Tolerance:
        """Read a table, see `worstcase.chip.tolerance_csv`.

        Args:
            path: of the CSV file.
            sigmas: at how many standard deviations write-verify stops; None: 2. Only for a column ``sigma``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no tolerance; the message names the file and the line.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> with TemporaryDirectory() as folder:
            ...     table = Path(folder, "devices.csv")
            ...     _ = table.write_text("conductance_percent,sigma_percent\\n0,1\\n100,2")
            ...     Tolerance.from_csv(table).upper
            (0.02, 0.04)
        """
        from worstcase.chip.tolerance_csv import read

        return read(Path(path), sigmas)

    @classmethod
    def preset(cls, name: str, *, sigmas: float | None = None) -> Tolerance:
        """A published programming error, see `worstcase.chip.presets`.

        Args:
            name: of the device and its source.
            sigmas: at how many standard deviations write-verify stops, above 0; None: 2.

        Raises:
            ValueError: there is no such preset, or so many are more than the largest conductance.

        Example:
            >>> round(Tolerance.preset("rram_milo2021").largest, 4)
            0.0494
        """
        from worstcase.chip.presets import preset

        return preset(name).tolerance(SIGMAS if sigmas is None else sigmas)

    # ---- tables made of this one

    def at_sigmas(self, sigmas: float) -> Tolerance:
        """The same device, with write-verify that stops at so many standard deviations.

        Args:
            sigmas: above 0.

        Raises:
            ValueError: it has none, or so many are more than the largest conductance.

        Example:
            >>> Tolerance.of_sigma([0, 1], [0.01, 0.02]).at_sigmas(3).upper
            (0.03, 0.06)
        """
        number("sigmas", sigmas, above=0)
        if self.sigma is None:
            raise ValueError(f"sigmas={sigmas:g}: this tolerance is no table of standard deviations")
        ends = [sigmas * s for s in self.sigma]
        if max(ends) > 1:
            raise ValueError(f"sigmas={sigmas:g}: its tolerance would be more than the largest conductance")
        return Tolerance(self.conductance, [-end for end in ends], ends, self.sigma)

    def scaled(self, factor: float) -> Tolerance:
        """Both ends times a number; the programming error stays.

        Args:
            factor: 0 or more.

        Raises:
            ValueError: an end would be beyond the largest conductance.

        Example:
            >>> Tolerance([0, 1], [-0.02, -0.04], [0.02, 0.06]).scaled(0.5)
            Tolerance(conductance=(0.0, 1.0), lower=(-0.01, -0.02), upper=(0.01, 0.03), sigma=None)
        """
        lower, upper = ([factor * end for end in ends] for ends in (self.lower, self.upper))
        return Tolerance(self.conductance, lower, upper, self.sigma)

    def drifted(self, ratio: float, nu: tuple[float, float]) -> Tolerance:
        """The deviations of devices that passed, and then drifted: g(t) = g (t / t0)^-nu.

        A device that is where it should be stays inside. The programming error becomes half the width.

        Args:
            ratio: t / t0, 1 or more.
            nu: the smallest and the largest exponent of any device.

        Example:
            >>> held = Tolerance([0, 1], [-0.02, -0.02], [0.02, 0.02])
            >>> [round(end, 4) for end in held.drifted(1e4, (0.03, 0.07)).lower]
            [-0.0152, -0.4857]
        """
        number("ratio", ratio, low=1)
        if not isinstance(nu, Sequence) or len(nu) != 2:
            raise ValueError(f"nu={nu!r}: must be the smallest and the largest exponent, such as (0.03, 0.07)")
        for exponent in nu:
            number("nu", exponent)
        factors = [ratio**-number_ for number_ in nu]

        def ends(deviations: Sequence[float], worst: Callable[..., float]) -> list[float]:
            now = [[f * (g + d) - g for f in factors] for g, d in zip(self.conductance, deviations, strict=True)]
            return [worst(0.0, *left) for left in now]

        return Tolerance(self.conductance, ends(self.lower, min), ends(self.upper, max))

    # ---- what it says

    @property
    def deviation(self) -> Sequence[float]:
        """The standard deviation at each conductance: of the programming error, or half the width."""
        return self.sigma or [(high - low) / 2 for low, high in zip(self.lower, self.upper, strict=True)]

    @property
    def largest(self) -> float:
        """The largest absolute deviation."""
        return max(*self.upper, *(-end for end in self.lower))

    def plain(self) -> dict[str, list[float]]:
        """The columns as lists, for a record."""
        columns = {name: getattr(self, name) for name in _RANGES}
        return {name: list(column) for name, column in columns.items() if column is not None}


NAME = "tolerances.safetensors"
"""Of the file beside a record that has numbers of single weights."""
_RANGES = {"conductance": (0.0, 1.0), "lower": (-1.0, 0.0), "upper": (0.0, 1.0), "sigma": (0.0, 1.0)}
Said = float | Tolerance | Mapping[str, "float | Tolerance | Tensor"]
"""A tolerance, the same at all conductances if it is a number; or several, by shell patterns of arrays' names,
where a tensor has a number for each weight."""


def of_each_array(said: Said, arrays: Iterable[str]) -> dict[str, float | Tolerance | Tensor]:
    """The tolerance of each array; of several patterns that fit, the first counts.

    Raises:
        ValueError: no pattern fits an array, or a pattern fits none.

    Example:
        >>> of_each_array({"fc*": 0.01, "*": 0.03}, ["conv1.weight", "fc1.weight"])
        {'conv1.weight': 0.03, 'fc1.weight': 0.01}
    """
    arrays = list(arrays)
    if not isinstance(said, Mapping):
        return dict.fromkeys(arrays, said)
    return {name: said[pattern] for name, pattern in pattern_of_each_array(said, arrays).items()}


def pattern_of_each_array(patterns: Iterable[str], arrays: Iterable[str]) -> dict[str, str]:
    """The first pattern that fits each array.

    Raises:
        ValueError: no pattern fits an array, or a pattern fits none.
    """
    patterns, arrays = list(patterns), list(arrays)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in arrays):
            raise ValueError(f"thg: no array is named {pattern!r}; there are {', '.join(arrays)}")
    found = {}
    for name in arrays:
        fitting = [pattern for pattern in patterns if fnmatchcase(name, pattern)]
        if not fitting:
            there_are = ", ".join(patterns)
            raise ValueError(f"thg: no pattern fits the array {name}; there are {there_are}; '*' fits all")
        found[name] = fitting[0]
    return found


def has_weights(said: Said) -> bool:
    """Whether weights have numbers of their own."""
    return isinstance(said, Mapping) and any(hasattr(one, "numel") for one in said.values())


def plain(said: Said) -> Any:
    """The same in plain types, for a record. Numbers of single weights are in a file beside it."""
    if has_weights(said):
        from worstcase.chip.tolerance_file import described

        return described(said, NAME)  # type: ignore[arg-type]
    if isinstance(said, Mapping):
        return {pattern: plain(one) for pattern, one in said.items()}  # type: ignore[arg-type]
    return said.plain() if isinstance(said, Tolerance) else said


def from_plain(said: Any) -> Said:
    """The opposite of `plain`.

    Raises:
        ValueError: it is none.
        FileNotFoundError: its file is gone.
    """
    if not isinstance(said, Mapping):
        return said
    if "digest" in said:
        from worstcase.chip.tolerance_file import load_tolerances

        return load_tolerances(said["file"], digest=said["digest"])
    if "conductance" not in said:
        return {pattern: from_plain(one) for pattern, one in said.items()}  # type: ignore[misc]
    try:
        return Tolerance(**said)
    except TypeError:
        raise ValueError(f"tolerance: columns are {', '.join(_RANGES)}, not {', '.join(said)}") from None


def largest(said: Said) -> float:
    """The largest absolute deviation of a device of any array."""
    if isinstance(said, Mapping):
        return max((largest(one) for one in said.values()), default=math.nan)  # type: ignore[arg-type]
    if isinstance(said, Tolerance):
        return said.largest
    return said if isinstance(said, int | float) else said.amax().item()
