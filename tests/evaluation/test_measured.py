"""A chip that was read back: its check, its score, its place; and the worst chip as a file."""

import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import worstcase
from worstcase import Crossbar, attacks
from worstcase.evaluation.measured import measure, read_chip
from worstcase.evaluation.record import Record
from worstcase.evaluation.record_parts import standing


@pytest.fixture
def crossbar(small_net):
    return Crossbar(small_net, 0.1)


def evaluate(crossbar, batches, **options):
    return worstcase.evaluate(crossbar, batches, [attacks.FLWC()], progress=False, **options)


def test_numpy_and_torch_give_the_same_and_failures_are_said_by_array(crossbar, small_batches):
    chip = crossbar.box.zero()
    bound = crossbar.bound()["5.weight"]
    chip["5.weight"][0, :3] = 2 * bound
    chip["5.weight"][1, :5] = bound
    chip["0.weight"][0, 0, 0, 0] = -1.0
    found = measure(crossbar, small_batches, chip)
    assert found.failed_by_array == {"0.weight": 1, "5.weight": 3} and found.failed == 4
    assert measure(crossbar, small_batches, {name: d.numpy() for name, d in chip.items()}) == found
    shown = str(evaluate(crossbar, small_batches, chip=chip))
    assert f"this chip: {found.accuracy:.2%}, " in shown
    assert "; 4 weights outside the box (5.weight 3, 0.weight 1)" in shown


def broken(chip, kind):
    if kind == "missing":
        del chip["5.weight"]
    elif kind == "unknown":
        chip["5.wieght"] = chip["5.weight"]
    elif kind == "shape":
        chip["5.weight"] = chip["5.weight"].T
    elif kind == "nan":
        chip["5.weight"][0, 0] = np.nan
    elif kind == "inf":
        chip["5.weight"][0, 0] = np.inf
    elif kind == "whole":
        chip["5.weight"] = np.zeros((3, 64), int)
    elif kind == "file":
        return "chip.safetensors"
    else:
        chip["5.weight"] = "x"
    return chip


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not fit the network: it has no 5.weight"),
        ("unknown", "no array is named 5.wieght; there are 0.weight, 5.weight"),
        ("shape", r"5.weight is \(64, 3\), not \(3, 64\)"),
        ("nan", "5.weight must hold floating-point numbers that are finite"),
        ("inf", "5.weight must hold floating-point numbers that are finite"),
        ("whole", "5.weight must hold floating-point numbers that are finite"),
        ("word", "the chip's 5.weight is no array of numbers"),
        ("file", r"a dict of tensors or arrays, not str; worstcase\.evaluation\.measured\.read_chip\(FILE\)"),
    ],
)
def test_a_chip_that_does_not_fit_is_refused_before_any_attack(crossbar, small_batches, kind, message):
    class Never(attacks.FLWC):
        name = "never"

        def search(self, run):
            raise AssertionError

    chip = broken({name: d.numpy() for name, d in crossbar.box.zero().items()}, kind)
    with pytest.raises(ValueError, match=message) as error:
        worstcase.evaluate(crossbar, small_batches, [Never()], chip=chip, progress=False)
    assert "\n" not in str(error.value)


def test_weights_taken_for_deviations_are_refused_and_so_is_the_reverse(crossbar, small_batches):
    chip = crossbar.box.sample("vertex")
    weights = {name: w.detach() + chip[name] for name, w in crossbar.programmed().items()}
    as_deviations = measure(crossbar, small_batches, chip)
    assert measure(crossbar, small_batches, weights, "weights") == as_deviations
    assert as_deviations.failed == 0, "a corner of the box is in it, also after W + d was rounded"
    with pytest.raises(ValueError, match=r"nearer to the programmed weights than to 0: .* say chip_holds=weights"):
        measure(crossbar, small_batches, weights)
    with pytest.raises(ValueError, match=r"nearer to 0 than to the programmed ones: .* say chip_holds=deviations"):
        measure(crossbar, small_batches, chip, "weights")
    with pytest.raises(ValueError, match="chip_holds='volts': must be deviations or weights"):
        measure(crossbar, small_batches, chip, "volts")
    dead = {name: -w.detach() for name, w in crossbar.programmed().items()}
    assert measure(crossbar, small_batches, dead).failed > 100


def test_read_weights_one_step_beyond_the_box_have_failed(small_batches, crossbar):
    weights = {name: w.detach().clone() for name, w in crossbar.programmed().items()}
    high = weights["5.weight"][0, 0] + crossbar.box.high["5.weight"]
    weights["5.weight"][0, 0] = high
    assert measure(crossbar, small_batches, weights, "weights").failed == 0
    weights["5.weight"][0, 0] = torch.nextafter(high, torch.tensor(torch.inf))
    assert measure(crossbar, small_batches, weights, "weights").failed_by_array["5.weight"] == 1


def test_a_weight_of_few_digits_is_outside_where_its_deviation_is():
    net = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    crossbar = Crossbar(net, 0.006)
    batches = [(torch.eye(2, dtype=torch.bfloat16), torch.arange(2))]
    weight = torch.eye(2, dtype=torch.bfloat16)
    weight[0, 0] = 1.0078125  # the next number above 1; the box ends at 1.006, which would be rounded to it
    assert measure(crossbar, batches, {"weight": weight}, "weights").failed == 1
    assert measure(crossbar, batches, {"weight": weight - torch.eye(2)}, "deviations").failed == 1


def test_what_an_earlier_evaluation_left_is_gone(crossbar, small_batches, tmp_path):
    drawn = [attacks.MonteCarlo(instances=5, sampler=sampler) for sampler in ("uniform", "vertex")]
    found = worstcase.evaluate(crossbar, small_batches, drawn, thgs=[0.01, 0.05], certificate=None, progress=False)
    found.save(tmp_path)
    pictures = {file.name for file in tmp_path.glob("monte_carlo*.png")}
    assert len(pictures) == 4 and (tmp_path / "accuracy_over_thg.png").is_file()
    (tmp_path / "mine.png").write_bytes(b"mine")
    options = {"certificate": None, "diagnosis": None, "progress": False}
    worstcase.evaluate(crossbar, small_batches, [attacks.FLWC()], **options).save(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert left == {"results.json", "perturbation.safetensors", "worst_chip.safetensors", "mine.png"}


@pytest.mark.parametrize("bits", [None, 4])
def test_the_worst_chips_file_is_one_that_plain_pytorch_loads_and_that_can_be_read_back(
    small_net, small_batches, tmp_path, bits
):
    crossbar = Crossbar(small_net, 0.3, weight_bits=bits)
    evaluate(crossbar, small_batches).save(tmp_path)
    record = Record.load(tmp_path)
    state = load_file(tmp_path / "worst_chip.safetensors")
    back = evaluate(crossbar, small_batches, chip=state, chip_holds="weights")
    assert (back.chip.accuracy, back.chip.failed) == (record.attacked_accuracy, 0)
    state["5.bias"] += 1
    with pytest.raises(ValueError, match=r"5.bias is digital and exact, but has other values there"):
        evaluate(crossbar, small_batches, chip=state, chip_holds="weights")

    small_net.load_state_dict(load_file(tmp_path / "worst_chip.safetensors"))
    with torch.no_grad():
        right = sum(int((small_net.eval()(x).argmax(1) == y).sum()) for x, y in small_batches)
    assert right / record.samples == record.attacked_accuracy < record.clean_accuracy


def test_a_tensor_that_two_layers_share_is_read_back_under_both_names():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    crossbar = Crossbar(net, 0.3)
    x = torch.randn(64, 4)
    batches = [(x, net(x).argmax(1))]
    state = crossbar.chip(crossbar.box.sample("vertex"))
    assert measure(crossbar, batches, state, "weights").failed == 0
    state["2.weight"] = state["2.weight"] * 2
    with pytest.raises(ValueError, match=r"2.weight shares its tensor with 0.weight"):
        measure(crossbar, batches, state, "weights")


def test_where_no_state_dict_holds_the_worst_chip_there_is_no_file_and_the_log_says_why(tmp_path, caplog):
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    batches = [(x, torch.arange(20) % 3)]
    caplog.set_level(logging.INFO)
    (tmp_path / "worst_chip.safetensors").write_text("of an evaluation before")
    evaluate(Crossbar(weight_norm(nn.Linear(4, 3)), 0.1), batches).save(tmp_path)
    assert not (tmp_path / "worst_chip.safetensors").exists()
    (line,) = [line for line in caplog.messages if "worst_chip" in line]
    assert "no state dict holds the chip: the layer of weight computes what it multiplies with" in line


def test_a_chip_in_the_box_that_is_worse_than_what_was_found_is_flagged(crossbar, small_batches):
    class Lazy(attacks.FLWC):
        name = "lazy"

        def search(self, run):
            return None

    crossbar.thg = 0.3
    worst = evaluate(crossbar, small_batches).worst
    lazy = worstcase.evaluate(crossbar, small_batches, [Lazy()], chip=worst.perturbation, progress=False)
    assert lazy.chip.accuracy < lazy.attacked_accuracy
    assert any("but the chip that was read back has" in flag for flag in lazy.flags)
    assert "below the worst chip found, though all its weights are in the box" in str(lazy)
    beyond = {name: 2 * d for name, d in worst.perturbation.items()}
    outside = worstcase.evaluate(crossbar, small_batches, [Lazy()], chip=beyond, progress=False)
    assert not any("read back" in flag for flag in outside.flags)


def test_where_a_chip_stands():
    assert standing(0.8, 0, 0.5, 0.8) == "not below the worst chip found"
    assert standing(0.7, 0, 0.5, 0.8) == "below the worst chip found, though all its weights are in the box"
    assert standing(0.7, 1, None, 0.8) == "below the worst chip found, as weights outside the box allow"
    assert standing(0.4, 1, 0.5, 0.8) == "below what is proven, as weights outside the box allow"


def test_a_chip_is_held_against_the_largest_box_and_the_record_keeps_it(crossbar, small_batches, tmp_path):
    chip = {name: 2 * d for name, d in crossbar.box.sample("vertex").items()}
    result = evaluate(crossbar, small_batches, thgs=[0.1, 0.2], chip=chip)
    assert result.chip.failed == 0 < measure(crossbar, small_batches, chip).failed
    result.save(tmp_path)
    assert Record.load(tmp_path).chip == {
        "file": None,
        "accuracy": result.chip.accuracy,
        "failed": 0,
        "failed_by_array": {"0.weight": 0, "5.weight": 0},
    }
    assert list(worstcase.results_frame([tmp_path]).chip_accuracy) == [result.chip.accuracy] * 2


# ---- files


def test_both_formats_are_read(tmp_path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "chip.safetensors")
    np.savez(tmp_path / "chip.npz", **{"a.weight": np.ones(2)})
    for name in ("chip.safetensors", "chip.npz"):
        assert read_chip(tmp_path / name)["a.weight"].tolist() == [1.0, 1.0]


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_no_file_is_executed_and_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys):
    np.savez(tmp_path / "pickled.npz", **{"a.weight": np.array([Harmful()], dtype=object)})
    (tmp_path / "broken.npz").write_text("none")
    (tmp_path / "broken.safetensors").write_text("none")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "chip.pt")
    for name in ("pickled.npz", "broken.npz", "broken.safetensors", "chip.pt"):
        with pytest.raises(ValueError, match=f"cannot read the chip .*{name}") as error:
            read_chip(tmp_path / name)
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no chip at"):
        read_chip(tmp_path / "none.npz")
