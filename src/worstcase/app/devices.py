"""What the settings say of devices, in plain numbers: a record needs no file, and no preset, to be read again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worstcase.chip.presets import PRESETS
from worstcase.chip.tolerance import Tolerance, from_plain, has_weights

SUFFIX = ".safetensors"


def in_numbers(thg: Any, sigmas: float | None) -> Any:
    """A setting of thg with its presets and files read.

    Args:
        thg: a number, a list of numbers, the name of a preset, the path of a CSV file, a table in plain numbers,
            or some of these by patterns of arrays' names; or the path of a safetensors file with th_g by array. If
            that has numbers of single weights, a digest and a summary are returned.
        sigmas: at how many standard deviations write-verify stops; None: 2, or what a table says.

    Raises:
        FileNotFoundError, ValueError: it is none of these, or sigmas is given, but no standard deviation.
    """
    found = _of_file(thg) if isinstance(thg, str) and thg.endswith(SUFFIX) else _in_numbers(thg, sigmas)
    if sigmas is not None and not _has_sigma(found):
        raise ValueError(
            f"sigmas={sigmas:g}: thg has no standard deviations; a preset, or a CSV file with sigma has"
        )
    return found


def _of_file(file: str) -> Any:
    from worstcase.chip.tolerance_file import described, load_tolerances

    tolerances = load_tolerances(file)
    return described(tolerances, file) if has_weights(tolerances) else tolerances


def _in_numbers(thg: Any, sigmas: float | None) -> Any:
    if isinstance(thg, str):
        return _named(thg, sigmas).plain()
    if not isinstance(thg, Mapping):
        return float(thg) if type(thg) is int else thg
    if "digest" in thg:  # of a file that was read
        return dict(thg)
    if "conductance" not in thg:
        return {str(pattern): _in_numbers(one, sigmas) for pattern, one in thg.items()}
    table = from_plain(thg)
    assert isinstance(table, Tolerance)
    return (table if sigmas is None or table.sigma is None else table.at_sigmas(sigmas)).plain()


def _named(thg: str, sigmas: float | None) -> Tolerance:
    if thg in PRESETS:
        return Tolerance.preset(thg, sigmas=sigmas)
    if thg.endswith(".csv"):
        return Tolerance.from_csv(thg, sigmas=sigmas)
    if _reads_as_a_number(thg):
        raise ValueError(f"thg={thg!r}: is text, since it is in quotes; say thg={thg}")
    raise ValueError(
        f"thg={thg}: must be a finite number, 0 or more; one of {', '.join(PRESETS)}; a CSV file; or these by "
        f"array, as in 'thg={{fc*:0.01,*:0.03}}'; or a {SUFFIX} file by itself; presets of one number are chosen "
        "with th_g=NAME"
    )


def _reads_as_a_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _has_sigma(thg: Any) -> bool:
    if not isinstance(thg, Mapping):
        return False
    return "sigma" in thg or any(map(_has_sigma, thg.values()))
