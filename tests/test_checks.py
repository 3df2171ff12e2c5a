import math
import subprocess
import sys

import numpy as np
import pytest

from worstcase.checks import check_seed, choice, number, whole


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: whole("n", 10.0), "n=10.0: must be a whole number, 1 or more"),
        (lambda: whole("n", True), "n=True: must be a whole number, 1 or more"),
        (lambda: whole("n", "3"), "n='3': must be a whole number, 1 or more"),
        (lambda: whole("n", None), "n=None: must be a whole number, 1 or more"),
        (lambda: whole("n", math.nan), "n=nan: must be a whole number, 1 or more"),
        (lambda: whole("n", 0), "n=0: must be 1 or more"),
        (lambda: whole("n", 1, least=2, also="or null"), "n=1: must be 2 or more, or null"),
        (
            lambda: whole("n", np.int64(3)),
            f"n={np.int64(3)!r}: must be a whole number, 1 or more, and of Python's own: .item() makes it so",
        ),
        (
            lambda: number("x", np.float32(0.5), above=0, also="in metres"),
            f"x={np.float32(0.5)!r}: must be a number, above 0 and finite, in metres, and of Python's own: "
            ".item() makes it so",
        ),
        (lambda: number("x", np.float64(1.5), low=0, high=1), f"x={np.float64(1.5)!r}: must be 0..1"),
        (lambda: whole("n", 33, most=32), "n=33: must be a whole number from 1 to 32"),
        (lambda: whole("n", 0.5, least=0, most=32), "n=0.5: must be a whole number from 0 to 32"),
        (lambda: choice("c", [], {"a": 1, "b": 2}), "c=[]: must be a or b"),
        (lambda: choice("c", "None", ("a", "b", None)), "c='None': must be a, b or None"),
        (lambda: check_seed("seed", -1), "seed=-1: must be a whole number from 0 to 4294967295"),
        (lambda: check_seed("seed", 2**32), "seed=4294967296: must be a whole number from 0 to 4294967295"),
        (lambda: number("x", math.nan), "x=nan: must be finite"),
        (lambda: number("x", -math.inf, low=0), "x=-inf: must be 0 or more and finite"),
        (lambda: number("x", 10**400), f"x={10**400}: must be finite"),
        (lambda: number("x", True, low=0), "x=True: must be a number, 0 or more and finite"),
        (lambda: number("x", "1"), "x='1': must be a number, finite"),
        (lambda: number("x", 0, above=0, also="in metres"), "x=0: must be above 0, in metres"),
        (lambda: number("x", 1.0, above=0, below=1), "x=1.0: must be above 0 and below 1"),
        (lambda: number("x", 1.5, low=0, high=1), "x=1.5: must be 0..1"),
        (lambda: number("x", 1.5, high=1), "x=1.5: must be 1 or less"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(check, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check()
    assert str(error.value) == message


def test_values_in_range_are_accepted():
    for value in (1, 7, 32):
        whole("n", value, most=32)
    for value in (0, 1, 0.5, 1.0):
        number("x", value, low=0, high=1)
    number("x", 5e-324, above=0)
    number("x", -1e300)
    for value in (0, 2**32 - 1):
        check_seed("seed", value)


def test_the_checks_need_no_pytorch():
    code = "import sys, worstcase.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
