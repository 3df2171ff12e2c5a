"""th_g of each weight in a file: the same box again, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from worstcase import Crossbar, DeviceMapping, Tolerance, attacks, device, load_tolerances, save_tolerances
from worstcase.chip.tolerance import from_plain, largest, plain
from worstcase.chip.tolerance_file import described, digest_of
from worstcase.verify import sensitivities as by
from worstcase.verify.allocation import allocated


def ends(crossbar):
    box = crossbar.box
    return [(box.low[name].expand_as(w), box.high[name].expand_as(w)) for name, w in crossbar.programmed().items()]


def same_box(one, other):
    pairs = zip(ends(one), ends(other), strict=True)
    return all(torch.equal(low, lows) and torch.equal(high, highs) for (low, high), (lows, highs) in pairs)


def test_what_was_shared_out_is_the_same_box_when_read_back(small_net, small_batches, tmp_path):
    crossbar = Crossbar(small_net, 0.05)
    crossbar.thg = allocated(by.by_gradient(crossbar, small_batches), 4.0)
    save_tolerances(tmp_path / "own.safetensors", crossbar.tolerance)
    again = Crossbar(small_net, load_tolerances(tmp_path / "own.safetensors"))
    assert same_box(crossbar, again) and again.thg == crossbar.thg == largest(again.tolerance)
    scales = crossbar.full_scales()
    for name, high in crossbar.box.high.items():
        exact = crossbar.tolerance[name] * scales[name]
        assert high.shape == crossbar.programmed()[name].shape and (high.double() <= exact).all()
        torch.testing.assert_close(high.double(), exact, rtol=1e-6, atol=0)
        assert torch.equal(crossbar.box.low[name], -high)


def test_numbers_for_arrays_are_the_box_of_these_numbers(small_net, tmp_path):
    thg = {"0.weight": 0.01, "5.weight": 0.03}
    save_tolerances(tmp_path / "own.safetensors", thg)
    assert load_tolerances(tmp_path / "own.safetensors") == thg
    weights = Crossbar(small_net, thg).programmed()
    exact = {name: torch.full(w.shape, thg[name], dtype=torch.double) for name, w in weights.items()}
    assert same_box(Crossbar(small_net, thg), Crossbar(small_net, exact))


@pytest.mark.parametrize("patterns", [["0.weight", "5.*", "*"], ["5*", "?.weight"], ["*t", "*.w*", "0.w*"]])
def test_of_patterns_the_first_that_fits_counts_when_read_back_too(patterns, tmp_path):
    thg = {pattern: i / 100 for i, pattern in enumerate(patterns)}
    save_tolerances(tmp_path / "own.safetensors", thg)
    assert list(load_tolerances(tmp_path / "own.safetensors").items()) == list(thg.items())


def test_the_order_of_patterns_is_part_of_what_identifies_them_and_that_of_names_is_not():
    def digest(*names):
        return digest_of({name: len(name) / 100 for name in names})

    assert digest("a.weight", "b.weight") == digest("b.weight", "a.weight")
    assert digest("1*", "*", "0.weight") != digest("*", "1*", "0.weight")


def test_without_an_order_names_come_before_patterns_and_long_ones_before_short(tmp_path):
    names = ["[0-9].weight", "*", "0.weight", "5.*"]
    save_file({name: torch.tensor(0.01) for name in names}, tmp_path / "own.safetensors")
    assert list(load_tolerances(tmp_path / "own.safetensors")) == ["0.weight", "[0-9].weight", "5.*", "*"]


@pytest.mark.parametrize("options", [{"pair": True}, {"cut_off": True}, {"pair": True, "cut_off": True}])
def test_each_weight_has_the_box_that_its_number_gives_it_on_any_devices(options):
    torch.manual_seed(0)
    layer = nn.Linear(5, 1, bias=False)
    mapping, thg = DeviceMapping(**options), torch.tensor([[0.0, 0.01, 0.02, 0.1, 0.3]])
    box = Crossbar(layer, {"weight": thg}, mapping=mapping).box
    for i, one in enumerate(thg[0].tolist()):
        alone = Crossbar(layer, one, mapping=mapping).box
        for end, of_one in ((box.low, alone.low), (box.high, alone.high)):
            expected = of_one["weight"].expand_as(layer.weight)[0, i].item()
            assert end["weight"].expand_as(layer.weight)[0, i].item() == pytest.approx(expected, rel=1e-6)


def test_attacks_and_samples_stay_in_the_box_of_each_weight(small_net, small_batches):
    torch.manual_seed(0)
    thg = {name: 0.2 * torch.rand(w.shape) for name, w in Crossbar(small_net, 0.1).programmed().items()}
    thg["5.weight"][0] = 0.0
    crossbar = Crossbar(small_net, thg)
    found = attacks.FLWC(steps=3)(crossbar, small_batches, progress=False)
    assert crossbar.box.contains(found.perturbation) and found.accuracy < found.clean_accuracy
    assert not found.perturbation["5.weight"][0].any()
    for settings in ({}, {"sigma": 0.03}, {"sigma": 0.03, "weight_bits": 4, "device_bits": 2}):
        drawn = attacks.MonteCarlo(instances=5, **settings)(crossbar, small_batches, progress=False)
        assert drawn.distribution["infeasible"] == 0 and not drawn.perturbation["5.weight"][0].any()
    crossbar.thg = Tolerance([0, 1], [-0.1, -0.1], [0.1, 0.1])
    with pytest.raises(ValueError, match="only where thg are numbers"):
        attacks.MonteCarlo(instances=5, weight_bits=4, device_bits=2)(crossbar, small_batches, progress=False)


def test_devices_of_a_weight_with_its_own_number_deviate_independently():
    """Far from the ends the weight's deviation is the weighted mean of its devices', by Eq. 4."""
    layer = nn.Linear(20_000, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    crossbar = Crossbar(layer, {"weight": torch.full((1, 20_000), 0.9)})
    batch = [(torch.ones(1, 20_000), torch.tensor([0]))]
    one = attacks.MonteCarlo(instances=1, sigma=0.1)(crossbar, batch, progress=False)
    of_two = attacks.MonteCarlo(instances=1, sigma=0.1, weight_bits=4, device_bits=2)(
        crossbar, batch, progress=False
    )
    assert one.perturbation["weight"].std().item() == pytest.approx(0.1, rel=0.03)
    assert of_two.perturbation["weight"].std().item() == pytest.approx(0.1 * 17**0.5 / 5, rel=0.03)


def test_another_largest_deviation_scales_all_numbers():
    crossbar = Crossbar(nn.Linear(2, 2, bias=False), {"weight": torch.tensor([[0.1, 0.2], [0.0, 0.4]])})
    with crossbar.bounded_by(0.2):
        exact = torch.tensor([[0.05, 0.1], [0.0, 0.2]], dtype=torch.double)
        torch.testing.assert_close(crossbar.tolerance["weight"], exact, rtol=1e-6, atol=0)
    assert crossbar.thg == pytest.approx(0.4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_few_bits_are_scaled_without_rounding(dtype):
    """In float16 the small ones would become 0, and the box would lack chips that it should have."""
    net, thg = nn.Linear(3, 2, bias=False), torch.tensor([[0.03, 0.03, 1e-4]] * 2, dtype=dtype)
    narrow, wide = (Crossbar(net, {"weight": numbers}) for numbers in (thg, thg.double()))
    for scaled in (1e-6, 0.9):
        with narrow.bounded_by(scaled), wide.bounded_by(scaled):
            assert same_box(narrow, wide) and narrow.tolerance["weight"].dtype == torch.double


def test_a_record_has_a_summary_and_what_identifies_the_file(tmp_path):
    thg = {"a": torch.tensor([0.01, 0.03]), "b": 0.05}
    said = plain(thg)
    assert said == described(thg, "tolerances.safetensors")
    assert said["largest"] == 0.05 and said["by_array"]["a"]["mean"] == pytest.approx(0.02)
    save_tolerances(tmp_path / "f.safetensors", thg)
    read = from_plain({**said, "file": str(tmp_path / "f.safetensors")})
    assert torch.equal(read["a"], thg["a"]) and read["b"] == 0.05
    assert (
        digest_of(read) == digest_of({"b": 0.05, "a": thg["a"].double()}) != digest_of({"a": thg["a"], "b": 0.04})
    )
    with pytest.raises(ValueError, match="holds other tolerances than those of the record"):
        from_plain({**said, "file": str(tmp_path / "f.safetensors"), "digest": "0" * 12})


TENTH = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.weight": torch.ones(4, 1, 3, 3)}, "no pattern fits the array 5.weight"),
        ({"0.weight": TENTH.clone(), "5.weight": TENTH.clone(), "x": TENTH}, "named 'x'; there are 0"),
        ({"0.weight": torch.ones(4), "5.weight": TENTH}, r"0.weight has the shape \(4, 1, 3, 3\), not \(4,\)"),
        ({"0.weight": torch.full((4, 1, 3, 3), 1.5), "5.weight": TENTH}, "0.weight: each number must be 0 <= thg"),
        ({"0.weight": torch.full((4, 1, 3, 3), -0.1)}, "f.safetensors: 0.weight must hold th_g"),
        ({"0.weight": torch.tensor([float("nan")])}, "0.weight must hold th_g, finite"),
        ({"0.weight": torch.ones(4, dtype=torch.long)}, "must hold th_g"),
        ({}, "holds no tolerances"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_right_is_one_clear_line(tensors, message, small_net, tmp_path):
    save_file(tensors, tmp_path / "f.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        Crossbar(small_net, load_tolerances(tmp_path / "f.safetensors"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "thg", "message"),
    [
        ("f.safetensors", {"a": 0.1, "b": torch.tensor([0.1, -0.1])}, "b must hold th_g, finite .* 0 or more"),
        ("f.safetensors", {}, "holds no tolerances"),
        ("f.pt", {"a": 0.1}, "must end in .safetensors"),
        ("none/f.safetensors", {"a": 0.1}, "there is no folder .*none for f.safetensors"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(file, thg, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        save_tolerances(tmp_path / file, thg)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_refused_and_nothing_in_it_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of tolerances at"):
        load_tolerances(tmp_path / "none.safetensors")
    pwned = tmp_path / "pwned"

    class Evil:
        def __reduce__(self):
            return pwned.touch, ()

    torch.save({"0.weight": Evil()}, tmp_path / "evil.safetensors")
    np.save(tmp_path / "array", np.ones(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.safetensors")
    for name in ("evil", "array"):
        with pytest.raises(ValueError, match="is no safetensors file of tolerances"):
            load_tolerances(tmp_path / f"{name}.safetensors")
    assert not pwned.exists()


def test_names_of_arrays_are_shown_in_printable_characters(tmp_path, monkeypatch, capsys):
    save_file({"a\x1b[31m": torch.tensor([0.01])}, tmp_path / "foreign.safetensors")
    monkeypatch.setattr("sys.argv", ["device", "--table", str(tmp_path / "foreign.safetensors")])
    device.main()
    assert r"a\x1b[31m " in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*sys.argv, "--sigmas", "3"])
    with pytest.raises(SystemExit, match=r"--sigmas: .* holds tolerances, no standard deviations"):
        device.main()


def test_tensors_and_tables_are_not_mixed():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    table = Tolerance([0, 1], [-0.1, -0.1], [0.1, 0.1])
    with pytest.raises(ValueError, match="tensors with a number for each weight and tables cannot be mixed"):
        Crossbar(layers, {"0.weight": torch.full((2, 2), 0.1), "*": table})
    mixed = Crossbar(layers, {"0.weight": torch.full((2, 2), 0.1), "*": 0.2})
    assert mixed.thg == 0.2 and set(mixed.tolerance) == {"0.weight", "*"}
