"""Weights as people keep them: what loads, and what is refused with the reason."""

from collections import OrderedDict

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import save_file
from torch import nn

from worstcase import Crossbar
from worstcase.checkpoints import load_weights
from worstcase.methods import Vanilla
from worstcase.models import LeNet


def test_a_plain_state_dict_loads_too(tmp_path):
    torch.manual_seed(0)
    net = LeNet()
    torch.save(net.state_dict(), tmp_path / "plain.pt")
    other = LeNet()
    load_weights(Crossbar(other, 0.1), tmp_path / "plain.pt")
    assert torch.equal(net.fc1.weight, other.fc1.weight)


def test_safetensors_and_data_parallel_checkpoints_load_too(tmp_path):
    torch.manual_seed(0)
    net = LeNet()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "net.th")
    for name in ("net.safetensors", "net.th"):
        other = LeNet()
        load_weights(Crossbar(other, 0.1), tmp_path / name)
        assert torch.equal(net.fc1.weight, other.fc1.weight)


def test_a_checkpoint_without_num_batches_tracked_loads(tmp_path, small_net):
    state = {k: v for k, v in small_net.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.th")
    load_weights(Crossbar(small_net, 0.1), tmp_path / "old.th")


def test_weights_of_another_network_are_refused_and_the_differences_named(tmp_path):
    torch.save(LeNet(num_classes=7).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(
        ValueError, match=r"does not belong to this LeNet: fc3.weight is \(7, 84\), not \(10, 84\)"
    ):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "seven.pt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"missing conv1.bias, .*; unexpected bias, weight"):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "linear.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    """1e300 is finite in the file, but not in the network."""
    state = {name: tensor.double() for name, tensor in LeNet().state_dict().items()}
    state["fc2.weight"][3, 5] = value
    torch.save(state, tmp_path / "broken.pt")
    before = LeNet()
    crossbar = Crossbar(before, 0.1)
    weights = before.fc1.weight.clone()
    with pytest.raises(ValueError, match=r"broken.pt holds values that are not finite: fc2.weight$"):
        load_weights(crossbar, tmp_path / "broken.pt")
    assert torch.equal(before.fc1.weight, weights)


def test_statistics_with_nan_are_refused_and_infinite_masks_are_not(tmp_path, small_net):
    state = small_net.state_dict()
    state["1.running_mean"] = torch.full((4,), torch.nan)
    torch.save(state, tmp_path / "broken.pt")
    with pytest.raises(ValueError, match=r"not finite: 1.running_mean$"):
        load_weights(Crossbar(small_net, 0.1), tmp_path / "broken.pt")
    small_net.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    torch.save(small_net.state_dict(), tmp_path / "masked.pt")
    load_weights(Crossbar(small_net, 0.1), tmp_path / "masked.pt")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_weights_of_another_kind_of_number_are_refused_by_name(tmp_path, dtype):
    state = LeNet().state_dict()
    state["conv1.weight"] = state["conv1.weight"].to(dtype)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"conv1.weight is {dtype}, not torch.float32"):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "other.pt")


STRANGE = {
    "a list": lambda state: {"state_dict": [1, 2]},
    "nothing": lambda state: {"state_dict": None},
    "a number as a name": lambda state: {**state, 3: torch.zeros(1)},
    "bytes as a name": lambda state: {**state, b"x": torch.zeros(1)},
    "sparse": lambda state: {**state, "fc1.weight": state["fc1.weight"].to_sparse()},
    "meta": lambda state: {**state, "fc1.weight": state["fc1.weight"].to("meta")},
    "a word": lambda state: {**state, "fc1.weight": "x"},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_anything_but_dense_tensors_is_refused_in_one_line(tmp_path, kind):
    torch.save(STRANGE[kind](LeNet().state_dict()), tmp_path / "strange.pt")
    with pytest.raises(ValueError, match=r"strange.pt") as error:
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "strange.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "ranges", ["x", [1], torch.tensor(1.0), torch.full((5,), -1.0), torch.full((5,), torch.inf)]
)
def test_invalid_ranges_of_outputs_are_refused(tmp_path, ranges):
    crossbar = Crossbar(LeNet(), 0.1, activation_bits=4)
    state = {f"crossbar.net.{key}": value for key, value in crossbar.net.state_dict().items()}
    torch.save({"state_dict": {**state, "crossbar.outputs.ranges": ranges}}, tmp_path / "strange.pt")
    with pytest.raises(ValueError, match=r"strange.pt holds no ranges of this network's outputs"):
        load_weights(crossbar, tmp_path / "strange.pt")


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "pickle", "no state dict", "safetensors"])
def test_a_broken_checkpoint_is_refused_in_one_line(tmp_path, kind, capsys):
    path = tmp_path / "weights.pt"
    if kind == "truncated":
        torch.save(LeNet().state_dict(), path)
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "pickle":
        torch.save({"state_dict": Harmful()}, path)
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        path.write_text("no tensors")
    elif kind == "no state dict":
        torch.save([1, 2], path)
    else:
        path.write_text("no tensors" if kind == "text" else "")
    with pytest.raises(ValueError, match=r"cannot read|does not belong") as error:
        load_weights(Crossbar(LeNet(), 0.1), path)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


# ---- as people keep them


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model_state_dict", "model", "net", "generator"])
@pytest.mark.parametrize(
    "prefix", ["", "model.", "net.", "_orig_mod.", "module.", "_orig_mod.module.model.", "my_net."]
)
def test_a_state_dict_loads_below_any_key_and_prefix(tmp_path, wrapper, prefix):
    torch.manual_seed(0)
    net = LeNet()
    state = {f"{prefix}{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "theirs.pt")
    other = LeNet()
    load_weights(Crossbar(other, 0.1), tmp_path / "theirs.pt")
    assert torch.equal(net.fc1.weight, other.fc1.weight)


def test_a_compiled_part_and_a_loss_beside_the_network_do_not_matter(tmp_path, small_net):
    state = {f"model.{name.replace('0.', '0._orig_mod.')}": t for name, t in small_net.state_dict().items()}
    assert "model.0._orig_mod.weight" in state
    torch.save({"state_dict": {**state, "loss.weight": torch.ones(3)}}, tmp_path / "theirs.ckpt")
    load_weights(Crossbar(small_net, 0.1), tmp_path / "theirs.ckpt")


def test_of_several_networks_in_a_file_none_is_guessed(tmp_path):
    student, teacher = LeNet().state_dict(), LeNet().state_dict()
    both = {f"student.{name}": t for name, t in student.items()} | {f"teacher.{n}": t for n, t in teacher.items()}
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    with pytest.raises(
        ValueError, match=r"several networks that fit, below state_dict.student, state_dict.teacher"
    ):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "both.pt")
    torch.save({"model": student, "net": student}, tmp_path / "twice.pt")
    load_weights(Crossbar(LeNet(), 0.1), tmp_path / "twice.pt")


@pytest.mark.parametrize("keys", [("state_dict", "state_dict_ema"), ("model", "ema"), ("generator", "average")])
def test_an_average_of_the_weights_beside_them_is_not_overlooked(tmp_path, keys):
    torch.save({key: LeNet().state_dict() for key in keys}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=f"several networks that fit, below {', '.join(keys)};"):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "both.pt")


def test_the_average_that_lightning_validated_is_what_its_checkpoint_holds(tmp_path, small_net, small_loader):
    ema = EMAWeightAveraging(decay=0.5)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, callbacks=[ema, ModelCheckpoint(tmp_path, "averaged")], **quiet)
    trainer.fit(Vanilla(Crossbar(small_net, 0.1), num_classes=3), small_loader)
    content = torch.load(tmp_path / "averaged.ckpt", weights_only=True)
    average, current = (content[key]["crossbar.net.5.weight"] for key in ("state_dict", "current_model_state"))
    assert not torch.equal(average, current)
    load_weights(Crossbar(small_net, 0.1), tmp_path / "averaged.ckpt")
    assert torch.equal(small_net[5].weight, average)


@pytest.mark.parametrize("prefix", ["", "model."], ids=["top", "model"])
def test_an_average_below_the_network_is_not_taken_for_it(tmp_path, prefix):
    net, average = nn.Linear(4, 2), nn.Linear(4, 2)
    both = {"fc": net, "ema.fc": average}
    state = {f"{prefix}{at}.{name}": t for at, one in both.items() for name, t in one.state_dict().items()}
    torch.save(state, tmp_path / "both.pt")
    given = Crossbar(nn.Sequential(OrderedDict(fc=nn.Linear(4, 2))), 0.1)
    places = f"{prefix.removesuffix('.') or 'the top'}, {prefix}ema;"
    with pytest.raises(ValueError, match=f"several networks that fit, below {places}"):
        load_weights(given, tmp_path / "both.pt")
    average.load_state_dict(net.state_dict())
    torch.save(state, tmp_path / "equal.pt")
    load_weights(given, tmp_path / "equal.pt")
    assert torch.equal(given.net.fc.weight, net.weight)


def test_a_state_dict_too_deep_to_be_found_is_told_with_what_to_do(tmp_path):
    torch.save({"networks": {"generator": LeNet().state_dict()}}, tmp_path / "deep.pt")
    with pytest.raises(ValueError, match=r"no named tensors, at its top or below one key; .*'plain.pt'\)$"):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "deep.pt")


def test_what_does_not_fit_below_a_prefix_is_named_without_it(tmp_path):
    state = {f"model.{name}": tensor for name, tensor in LeNet(num_classes=7).state_dict().items()}
    del state["model.conv1.bias"]
    torch.save({"model": {**state, "model.extra": torch.ones(1)}}, tmp_path / "seven.pt")
    message = r"missing conv1.bias; unexpected extra; fc3.weight is \(7, 84\), not \(10, 84\); fc3.bias is"
    with pytest.raises(ValueError, match=message):
        load_weights(Crossbar(LeNet(), 0.1), tmp_path / "seven.pt")


def test_an_object_that_is_no_tensor_is_named_with_the_line_that_makes_a_plain_file(tmp_path):
    net = nn.Linear(2, 2)
    plain = "torch.save(model.state_dict(), 'plain.pt')"
    torch.save(net, tmp_path / "whole.pt")
    torch.jit.script(net).save(tmp_path / "scripted.pt")
    torch.export.save(torch.export.export(net, (torch.zeros(1, 2),)), tmp_path / "exported.pt2")
    for name, what in {
        "whole.pt": "it holds a torch.nn.modules.linear.Linear, and reading that would run code",
        "scripted.pt": "it is a scripted network",
        "exported.pt2": "it is an exported program",
    }.items():
        with pytest.raises(ValueError, match=what) as error:
            load_weights(Crossbar(nn.Linear(2, 2), 0.1), tmp_path / name)
        assert plain in str(error.value) and "\n" not in str(error.value)
