"""Tolerances by table, function, file and name."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from worstcase import Tolerance
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.presets import PRESETS
from worstcase.chip.tolerance import from_plain, largest, plain

FACTS = {  # percent of the largest conductance, at 0, 0.2, ... 1
    "rram_milo2021": [2.47, 2.29, 2.11, 1.93, 1.74, 1.56],
    "rram_wan2022": [2.68, 5.79, 6.36, 5.55, 4.47, 4.28],
    "pcm_joshi2020": [1.23, 2.56, 3.52, 4.14, 4.40, 4.31],
}


@pytest.mark.parametrize("name", FACTS)
def test_presets_are_what_was_published(name):
    preset = PRESETS[name]
    assert list(preset.conductance) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert [100 * s for s in preset.sigma] == pytest.approx(FACTS[name])
    assert preset.source


def test_the_preset_of_a_polynomial():
    table = Tolerance.preset("pcm_nandakumar2019", sigmas=1)
    g = torch.linspace(0, 1, 997, dtype=torch.double)
    exact = (0.26348 + 1.9650 * g - 1.1731 * g**2) / 25
    _, high = DeviceMapping().ends(g, table, None)
    assert (high - exact)[1:].abs().max() < 4e-5 and table.largest == pytest.approx(1.0863 / 25, abs=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_stops_at_some_standard_deviations(name):
    table, three = Tolerance.preset(name), Tolerance.preset(name, sigmas=3)
    assert list(table.upper) == pytest.approx([2 * s for s in PRESETS[name].sigma])
    assert table.lower == tuple(-u for u in table.upper) and table.sigma == three.sigma
    assert three.largest == pytest.approx(1.5 * table.largest)


def test_a_function_is_its_table():
    table = Tolerance([0, 1], [-0.02, -0.06], [0.01, 0.03])
    made = Tolerance.of_function(lambda g: (-0.02 - 0.04 * g, 0.01 + 0.02 * g))
    g = torch.rand(1000, dtype=torch.double) * 2 - 1
    for one, other in zip(DeviceMapping().ends(g, table, None), DeviceMapping().ends(g, made, None), strict=True):
        torch.testing.assert_close(one, other)


def test_drift_by_hand():
    held = Tolerance([0, 0.5, 1], [0, -0.1, -0.1], [0.1, 0.1, 0.1])
    drifted = held.drifted(100.0, (0.0, 0.05))
    factor = 100**-0.05
    assert drifted.lower == pytest.approx((0, factor * 0.4 - 0.5, factor * 0.9 - 1))
    assert drifted.upper == pytest.approx((0.1, 0.1, 0.1))
    later = held.drifted(100.0, (0.05, 0.05))
    assert later.upper == pytest.approx((factor * 0.1, max(0, factor * 0.6 - 0.5), max(0, factor * 1.1 - 1)))
    assert held.drifted(1.0, (0.03, 0.07)).lower == pytest.approx(held.lower)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_columns_may_be_arrays(dtype):
    columns = [[0, 1], [0, -1], [1, 0]]
    assert Tolerance(*(np.array(column, dtype) for column in columns)) == Tolerance(*columns)
    assert Tolerance(*map(torch.tensor, columns)) == Tolerance(*columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0, 1], [0, 0], [0, math.nan]), r"upper\[1\]=nan: must be 0\.\.1"),
        (([0, 1], [0.1, 0], [0, 0]), r"lower\[0\]=0.1: must be -1\.\.0"),
        (([0, 1], [0], [0, 0]), "lower: 1 values for 2 conductances"),
        (([0, 0.9], [0, 0], [0, 0]), "conductance: must begin at 0 and end at 1"),
        (([0.1, 1], [0, 0], [0, 0]), "conductance: must begin at 0 and end at 1"),
        (([0, 0.5, 0.5, 1], [0] * 4, [0] * 4), "conductance: must rise"),
        (([0, 2], [0, 0], [0, 0]), r"conductance\[1\]=2: must be 0\.\.1"),
        (([], [], []), "conductance: must begin at 0"),
        (([0, 1], [0, "a"], [0, 0]), r"lower\[1\]='a': must be a number"),
    ],
)
def test_tables_that_cannot_be(columns, message):
    with pytest.raises(ValueError, match=message):
        Tolerance(*columns)


def test_sigmas_that_cannot_be():
    with pytest.raises(ValueError, match="is no table of standard deviations"):
        Tolerance([0, 1], [0, 0], [0, 0]).at_sigmas(2)
    with pytest.raises(ValueError, match="more than the largest conductance"):
        Tolerance.preset("rram_wan2022", sigmas=20)
    with pytest.raises(ValueError, match="sigmas=0: must be above 0"):
        Tolerance.preset("rram_wan2022", sigmas=0)
    with pytest.raises(ValueError, match="there is no preset 'rram'; there are pcm_joshi2020, "):
        Tolerance.preset("rram")


# ---- CSV


def csv(tmp_path, text):
    file = tmp_path / "table.csv"
    file.write_text(text)
    return file


def test_units_of_a_csv(tmp_path):
    table = Tolerance([0, 0.5, 1], [0, -0.024, -0.04], [0.016, 0.02, 0.02])
    in_us = (
        "# by us\n\n# full_scale_uS = 25\nconductance_uS, lower_uS, upper_uS\n0,0,0.4\n12.5,-0.6,0.5\n25,-1,0.5\n"
    )
    in_percent = "upper_percent,conductance,lower\n1.6,0,0\n2,0.5,-0.024\n2,1,-0.04\n"
    for text in (in_us, in_percent):
        assert Tolerance.from_csv(csv(tmp_path, text)) == table


def test_comments_of_a_csv_may_be_indented_and_in_any_encoding(tmp_path):
    file = tmp_path / "windows.csv"
    file.write_bytes(
        "# in \xb5S\r\n  # full_scale_uS = 25\r\nconductance_uS,sigma_uS\r\n0,1\r\n25,2".encode("latin-1")
    )
    assert Tolerance.from_csv(file).sigma == (0.04, 0.08)


def test_standard_deviations_of_a_csv(tmp_path):
    file = csv(tmp_path, "conductance_percent,sigma_percent\n0,1\n100,3\n")
    assert Tolerance.from_csv(file) == Tolerance([0, 1], [-0.02, -0.06], [0.02, 0.06], [0.01, 0.03])
    assert Tolerance.from_csv(file, sigmas=3).upper == (0.03, 0.09)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": it has no header"),
        (
            "conductance,lower\n0,0\n1,0\n",
            ": columns conductance, lower: must be conductance, and lower and upper",
        ),
        ("g,lower,upper\n0,0,0\n", ": columns g, lower, upper: must be"),
        ("conductance,sigma_uS\n0,0\n1,1\n", ": sigma_uS needs a line '# full_scale_uS = NUMBER'"),
        (
            "# full_scale_uS = much\nconductance,sigma_uS\n0,0\n",
            ": full_scale_uS = much: must be a number above 0",
        ),
        ("conductance,sigma\n0,0.1\n\n1,x\n", ", line 4: sigma 'x' is no number"),
        ("conductance,sigma\n0,nan\n1,0\n", ", line 2: sigma nan is not from 0 to 1"),
        ("conductance,sigma\n0,0.1\n0.5,7\n", ", line 3: sigma 7 is not from 0 to 1"),
        ("conductance,lower,upper\n0,0.1,0.1\n", ", line 2: lower 0.1 is not from -1 to 0"),
        ("conductance,sigma\n0,0.1\n1\n", ", line 3: 1 values for 2 columns"),
        ("conductance,sigma\n0,0.1\n1,0.1\n0.5,0.1\n", ", line 4: conductance must rise"),
        ("conductance,sigma\n0.1,0.1\n1,0.1\n", ": conductance: must begin at 0 and end at 1"),
        ("conductance,sigma\n0,0.6\n1,0.1\n", ": sigmas=2: its tolerance would be more than the largest"),
    ],
)
def test_a_csv_that_cannot_be_is_named_with_its_line(text, message, tmp_path):
    file = csv(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(f"{file}{message}")) as told:
        Tolerance.from_csv(file)
    assert "\n" not in str(told.value)


def test_sigmas_are_for_standard_deviations(tmp_path):
    with pytest.raises(ValueError, match="sigmas=3 is for a column sigma"):
        Tolerance.from_csv(csv(tmp_path, "conductance,lower,upper\n0,0,0\n1,0,0\n"), sigmas=3)
    with pytest.raises(FileNotFoundError, match=r"no table of a tolerance at nowhere\.csv"):
        Tolerance.from_csv("nowhere.csv")


# ---- in a record


def test_what_is_plain_is_the_same_again():
    table = Tolerance.preset("pcm_joshi2020")
    for said in (0.03, table, {"fc*": 0.01, "*": table}):
        assert from_plain(plain(said)) == said
    assert largest({"fc*": 0.01, "*": table}) == table.largest == pytest.approx(0.088)
    with pytest.raises(ValueError, match="columns are conductance, lower, upper, sigma, not conductance, low"):
        from_plain({"conductance": [0, 1], "low": [0, 0]})


def test_it_needs_no_torch():
    code = (
        "import sys; import worstcase; worstcase.Tolerance.preset('rram_wan2022'); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_settings_of_a_function_and_of_drift_that_cannot_be():
    with pytest.raises(ValueError, match="rows=1: must be 2 or more"):
        Tolerance.of_function(lambda g: (-0.1, 0.1), rows=1)
    held = Tolerance([0, 1], [-0.1, -0.1], [0.1, 0.1])
    for nu in (0.05, (0.03,)):
        with pytest.raises(ValueError, match="must be the smallest and the largest exponent"):
            held.drifted(10, nu)
