"""One evaluation, whoever asks: its numbers, its flags, what it prints and what it saves."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from records import CONFIG
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import worstcase
from worstcase import Crossbar, attacks, evaluate, load_run, results_frame
from worstcase.attacks import passes
from worstcase.certificate import Certificate, certify
from worstcase.evaluation.record import Record
from worstcase.methods import Vanilla


def numbers(record):
    """The part of a record that does not depend on who asked."""
    kept = ("attack", "thg", "accuracy", "final_accuracy", "passes", "seed", "parameters")
    return {
        "clean": record["clean_accuracy"],
        "attacked": record["attacked_accuracy"],
        "flags": record["flags"],
        "attacks": [{key: found[key] for key in kept} for found in record["attacks"]],
    }


def test_a_training_the_command_and_python_give_the_same_numbers_and_flags(tmp_path):
    small = ["method=vanilla", "trainer.max_epochs=1", "attack@test_attack=flwc", "dataset.limit=300"]
    run("src.train", *small, "suite=single", f"hydra.run.dir={tmp_path}")
    run("src.evaluate", f"run={tmp_path}", "attack=flwc")
    (evaluation,) = tmp_path.glob("evaluations/*/results.json")
    trained = json.loads((tmp_path / "results.json").read_text())

    torch.set_num_threads(1)
    loaded = load_run(tmp_path)
    result = worstcase.evaluate(
        loaded.crossbar, loaded.datamodule.test_dataloader(), [attacks.FLWC()], progress=False
    )
    result.save(tmp_path / "python")
    python = json.loads((tmp_path / "python" / "results.json").read_text())
    assert numbers(trained) == numbers(json.loads(evaluation.read_text())) == numbers(python)
    assert (trained["kind"], python["kind"], python["model"]) == ("train", "evaluate", "LeNet")
    assert Record.load(tmp_path / "python").diagnosis["accuracy"] == python["attacked_accuracy"]
    assert {path.name for path in (tmp_path / "python").iterdir()} == {
        "results.json",
        "perturbation.safetensors",
        "worst_chip.safetensors",
        *(f"{name}.png" for name in ("confusion", "confidence", "perturbation", "layers")),
    }


def accuracy(net, loader):
    with torch.no_grad():
        return sum(int((net.eval()(x).argmax(1) == y).sum()) for x, y in loader) / sum(len(y) for _, y in loader)


@pytest.mark.parametrize("bits", [None, 4])
def test_plain_pytorch_loads_the_worst_chip(small_net, small_batches, bits):
    result = worstcase.evaluate(
        Crossbar(small_net, 0.3, weight_bits=bits), small_batches, [attacks.FLWC()], progress=False
    )
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    state = result.worst_chip()
    assert all(torch.equal(before[name], tensor) for name, tensor in small_net.state_dict().items())
    small_net.load_state_dict(state)
    assert accuracy(small_net, small_batches) == result.attacked_accuracy < result.clean_accuracy


def test_training_on_does_not_change_the_worst_chip_that_was_found(small_net, small_batches, tmp_path):
    result = worstcase.evaluate(Crossbar(small_net, 0.1), small_batches, attacks.FLWC(), progress=False)
    with torch.no_grad():
        small_net[0].weight.mul_(-1)
    result.save(tmp_path)
    for state in (result.worst_chip(), load_file(tmp_path / "worst_chip.safetensors")):
        small_net.load_state_dict(state)
        assert accuracy(small_net, small_batches) == pytest.approx(result.attacked_accuracy)


def test_a_record_names_what_computed_also_once_the_network_is_elsewhere(small_net, small_batches):
    """As after a training on a GPU, when Lightning moves it back to the CPU."""
    result = worstcase.evaluate(Crossbar(small_net, 0.1), small_batches, attacks.FLWC(), progress=False)
    result.crossbar.to("meta")
    assert result.record().device == "cpu"


def test_two_layers_that_share_a_tensor_share_it_in_the_worst_chip():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    net[2].weight = net[0].weight
    x = torch.randn(64, 4)
    result = worstcase.evaluate(Crossbar(net, 0.3), [(x, net(x).argmax(1))], [attacks.FLWC()], progress=False)
    state = result.worst_chip()
    assert torch.equal(state["0.weight"], state["2.weight"])
    assert not torch.equal(state["0.weight"], net[0].weight)


def test_vanished_gradients_are_flagged_in_python_too():
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    loader = [(torch.randn(32, 8), torch.zeros(32, dtype=torch.long))]
    result = worstcase.evaluate(Crossbar(net, 0.05), loader, [attacks.FLWC()], progress=False)
    assert any("gradients vanish" in flag for flag in result.flags)
    assert f"flag: {result.flags[0]}" in str(result)


def test_an_attack_that_finds_less_than_a_random_vertex_is_flagged():
    class Lazy(attacks.FLWC):
        name = "lazy"

        def search(self, run):
            return None

    torch.manual_seed(0)
    net = nn.Linear(8, 4)
    x = torch.randn(200, 8)
    result = worstcase.evaluate(Crossbar(net, 0.9), [(x, net(x).argmax(1))], [Lazy()], progress=False)
    assert any("but a random vertex has" in flag for flag in result.flags)


def test_an_answer_that_is_nan_is_wrong():
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
    x = torch.tensor([[2.0, 1.0], [3.0, 1.0]])
    chip = {"weight": torch.tensor([[torch.nan, 0.0], [0.0, 0.0]])}
    crossbar, loader = Crossbar(net, 0.1), [(x, torch.tensor([0, 0]))]
    assert passes.accuracy(crossbar, loader) == 1.0 and passes.accuracy(crossbar, loader, chip) == 0.0


@pytest.mark.parametrize(("where", "wrong"), [("inputs", 1), ("bias", 2)])
def test_a_network_that_gives_nan_as_programmed_is_refused(where, wrong):
    net = nn.Linear(2, 2)
    x = torch.tensor([[2.0, 1.0], [3.0, 1.0]])
    with torch.no_grad():
        (x[1] if where == "inputs" else net.bias)[0] = torch.nan
    with pytest.raises(ValueError, match=f"gives NaN for {wrong} of 2 answers"):
        worstcase.evaluate(Crossbar(net, 0.1), [(x, torch.tensor([0, 0]))], progress=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda net, data: worstcase.evaluate(net, data),
        lambda net, data: worstcase.tolerance(net, data, 0.9),
        lambda net, data: worstcase.reprogram(net, data, {}, 0.9),
        lambda net, data: certify(net, data),
        lambda net, data: attacks.FLWC()(net, data),
        lambda net, data: Vanilla(net, num_classes=2),
    ],
    ids=["evaluate", "tolerance", "reprogram", "certify", "attack", "train"],
)
def test_a_network_in_place_of_its_crossbar_is_refused(use):
    with pytest.raises(ValueError, match=r"a Linear is no Crossbar; make one of the network: Crossbar\(net, thg="):
        use(nn.Linear(3, 2), [(torch.randn(4, 3), torch.zeros(4).long())])


def test_th_g_are_attacked_in_rising_order_and_the_crossbar_keeps_its_own(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    result = worstcase.evaluate(
        crossbar, small_batches, [attacks.FLWC(), attacks.PGD()], thgs=[0.3, 0.2], heldout=True, progress=False
    )
    assert [(one.attack, one.thg) for one in result.attacks] == [
        ("flwc", 0.2),
        ("flwc", 0.3),
        ("pgd", 0.2),
        ("pgd", 0.3),
    ]
    for small, large in (result.attacks[:2], result.attacks[2:]):
        assert large.accuracy <= small.accuracy
        assert small.heldout_accuracy is not None and small.attacked_half_accuracy is not None
    assert crossbar.thg == 0.1 and result.thg == result.diagnosis["thg"] == 0.3


def test_a_chip_that_was_read_back_is_scored_even_outside_the_box(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    chip = crossbar.box.zero()
    exact = worstcase.evaluate(crossbar, small_batches, [attacks.FLWC()], chip=chip, progress=False)
    assert (exact.chip.accuracy, exact.chip.failed) == (exact.clean_accuracy, 0)
    bound = crossbar.bound()["5.weight"]
    chip["5.weight"][0, :3] = 2 * bound
    chip["5.weight"][1, :5] = bound
    read = worstcase.evaluate(crossbar, small_batches, [attacks.FLWC()], chip=chip, progress=False)
    assert read.chip.failed == 3
    assert "3 weights outside the box (5.weight 3)" in str(read)


def test_the_summary_names_the_attack_that_found_the_worst_chip(small_net, small_batches):
    result = worstcase.evaluate(
        Crossbar(small_net, 0.1), small_batches, [attacks.FLWC()], certificate=None, progress=False
    )
    first = str(result).splitlines()[0]
    assert first == (
        f"clean {result.clean_accuracy:.2%}; worst chip at most {result.attacked_accuracy:.2%} (found by flwc)"
    )
    assert result.certified_accuracy is None
    assert first in result._repr_html_()


def test_the_worst_case_is_between_what_is_proven_and_what_is_found(small_net, small_batches, tmp_path):
    images = [(x, small_net.eval()(x).argmax(1)) for x, _ in small_batches]
    crossbar = Crossbar(small_net, 0.03)
    result = worstcase.evaluate(crossbar, images, [attacks.FLWC()], thgs=[0.003, 0.01], progress=False)
    small, large = result.certificates
    assert (small.thg, large.thg) == (0.003, 0.01)
    assert 0 < large.accuracy < small.accuracy
    assert result.certified_accuracy == large.accuracy <= result.attacked_accuracy <= result.clean_accuracy
    assert f"worst chip between {large.accuracy:.2%} (proven) and {result.attacked_accuracy:.2%} (" in str(result)

    result.save(tmp_path)
    record = Record.load(tmp_path)
    assert record.certified_accuracy == large.accuracy and record.not_certified is None
    assert [(of["method"], of["thg"], of["accuracy"]) for of in record.certified] == [
        ("interval", 0.003, small.accuracy),
        ("interval", 0.01, large.accuracy),
    ]
    assert [record.certified_at(thg) for thg in (0.001, 0.003, 0.005, 0.01, 0.02)] == [
        *[small.accuracy] * 2,
        *[large.accuracy] * 2,
        None,
    ]
    frame = worstcase.results_frame([tmp_path])
    assert list(frame.certified_accuracy) == [small.accuracy, large.accuracy]


def test_the_proof_costs_no_more_than_the_attacks_unless_it_is_asked_to(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.003)
    methods = {}
    for name, attack, certificate in (
        ("cheap", attacks.FLWC(), "auto"),
        ("asked", attacks.FLWC(), "linear"),
        ("dear", attacks.Ensemble(rounds=2), "auto"),
        ("less", attacks.Ensemble(rounds=2), "interval"),
    ):
        result = worstcase.evaluate(crossbar, small_batches, [attack], certificate=certificate, progress=False)
        (methods[name],) = [one.method for one in result.certificates]
        assert result.certified_accuracy <= result.attacked_accuracy
    assert methods == {"cheap": "interval", "asked": "linear", "dear": "linear", "less": "interval"}


def test_where_linear_bounds_have_no_rule_intervals_prove_and_say_so(small_batches, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 3))
    images = [(x, net(x).argmax(1)) for x, _ in small_batches]
    result = worstcase.evaluate(
        Crossbar(net, 3e-3), images, [attacks.FLWC()], certificate="linear", up_to=True, progress=False
    )
    (proven,) = result.certificates
    assert proven.method == "interval" and proven.accuracy > 0.5
    assert "linear bounds are not supported: 2 (GELU) by linear bounds" in str(result)
    result.save(tmp_path)
    record = Record.load(tmp_path)
    assert record.certified[0]["note"] == proven.note
    assert [of["accuracy"] for of in record.certified_up_to] == [0.99, 0.95, 0.9]
    thgs = [of["thg"] for of in record.certified_up_to]
    assert 0 < thgs[0] <= thgs[1] <= thgs[2]


def test_where_nothing_is_proven_the_record_says_why(small_net, small_batches):
    class Decides(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    crossbar = Crossbar(Decides(small_net), 0.1)
    unproven = worstcase.evaluate(crossbar, small_batches, [attacks.FLWC()], progress=False)
    assert unproven.certified_accuracy is None is unproven.record().certified_accuracy
    assert "Decides cannot be traced" in unproven.record().not_certified
    assert f"nothing is proven: {unproven.not_certified}" in str(unproven)


def test_the_chip_of_each_attack_is_saved(small_net, small_batches, tmp_path):
    result = worstcase.evaluate(
        Crossbar(small_net, 0.3), small_batches, [attacks.FLWC(), attacks.PGD()], progress=False
    )
    result.save(tmp_path / "new" / "folder")
    record = Record.load(tmp_path / "new" / "folder")
    for found, saved in zip(result.attacks, record.attacks, strict=True):
        perturbation = load_file(tmp_path / "new" / "folder" / saved.perturbation)
        assert all(torch.equal(found.perturbation[name], d) for name, d in perturbation.items())
    assert len({file.stat().st_mode for file in (tmp_path / "new" / "folder").iterdir()}) == 1, "all may read all"
    shutil.rmtree(tmp_path / "new")


def test_evaluations_of_one_network_on_two_sets_as_large_are_told_apart(small_net, small_batches, tmp_path):
    darker = [(images - 1, labels) for images, labels in small_batches]
    for name, data in (("as_given", small_batches), ("again", small_batches[::-1]), ("darker", darker)):
        result = evaluate(Crossbar(small_net, 0.1), data, [attacks.FLWC(steps=1)], progress=False)
        result.save(tmp_path / name)
    settings = results_frame([tmp_path]).set_index("folder").reference_settings
    of = [settings[str(tmp_path / name)] for name in ("as_given", "again", "darker")]
    assert of[0] == of[1] != of[2]


class Unused(attacks.FLWC):
    """Follows gradients of half of the samples at most."""

    name = "unused"

    def search(self, run):
        assert run.samples == 50, "the attack ran"
        super().search(run)


def named(name):
    return type("Named", (attacks.FLWC,), {"name": name})()


def shuffled():
    data = TensorDataset(torch.randn(100, 1, 6, 6), torch.arange(100) % 3)
    return DataLoader(data, batch_size=50, shuffle=True)


def test_records_of_networks_or_layers_that_differ_are_apart(small_batches, tmp_path):
    for name, options in {"one": {}, "again": {}, "other": {}, "part": {"exclude": ["3"]}}.items():
        torch.manual_seed(name == "other")
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
        crossbar = Crossbar(net.bfloat16().float(), 0.3, **options)
        quick = {"progress": False, "diagnosis": None, "certificate": None}
        evaluate(crossbar, small_batches, [attacks.FLWC(steps=1)], **quick).save(tmp_path / name)
    rows = results_frame([tmp_path])
    groups = rows.groupby(["network_settings", "reference_settings"]).folder
    assert sorted(sorted(Path(one).name for one in group) for _, group in groups) == [
        ["again", "one"],
        ["other"],
        ["part"],
    ]


def test_a_folder_holds_files_of_one_evaluation(small_net, small_batches, tmp_path):
    result = worstcase.evaluate(Crossbar(small_net, 0.3), small_batches, [attacks.FLWC(steps=1)], progress=False)
    killed = [tmp_path / name for name in ("perturbation.safetensors", "accuracy_over_thg.png")]
    for file in killed:
        file.touch()
    invalid = result.record(model="$")
    with pytest.raises(ValueError, match="would be invalid: model"):
        result.save(tmp_path, invalid)
    assert all(file.read_bytes() == b"" for file in killed) and len(list(tmp_path.iterdir())) == 2
    result.save(tmp_path)
    assert Record.load(tmp_path) and not (tmp_path / "accuracy_over_thg.png").exists()
    result.save(tmp_path, result.record(kind="train", config=CONFIG))
    with pytest.raises(ValueError, match="holds the record of a training; choose another folder"):
        result.save(tmp_path)
    assert Record.load(tmp_path).kind == "train" and (tmp_path / "perturbation.safetensors").is_file()


def test_records_hold_any_name_of_an_array(small_batches, tmp_path, caplog):
    net = nn.Sequential(nn.AvgPool2d((6, 1)), nn.Flatten())
    for name in (odd := ("$\\frac{$", "x" * 300, "a/b\n")):
        net.add_module(name, nn.Linear(6, 6))
    result = evaluate(Crossbar(net, 0.1), small_batches, [attacks.FLWC(steps=1)], progress=False)
    result.save(tmp_path)
    layers = Record.load(tmp_path).diagnosis["layers"]
    assert [layer["array"] for layer in layers] == [f"{name}.weight" for name in odd]
    assert (tmp_path / "layers.png").is_file() and not caplog.records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": []}, "attacks="),
        ({"attacks": [Unused(), attacks.LWC]}, r"attacks: give objects, such as attacks\.FLWC\(\), not <class"),
        ({"attacks": [Unused(), attacks.FLWC(objective="into_class:99")]}, "into_class:99"),
        ({"attacks": [Unused(), named("a/b")]}, "name='a/b': must be 1 to 100 printable characters"),
        ({"attacks": [Unused(), named("a$")]}, r"name='a\$': must be"),
        ({"attacks": [Unused(), named("flwc")]}, r"Named\.name='flwc': is another's; give the class"),
        ({"attacks": [Unused(), named("clean")]}, "name='clean': is another's"),
        ({"attacks": Unused(), "thgs": []}, "thgs="),
        ({"attacks": Unused(), "thgs": [0.1, -1]}, "thg=-1"),
        ({"attacks": Unused(), "thgs": [0.1, 3.0]}, "3"),
        ({"attacks": Unused(), "seed": 2**32}, "seed=4294967296"),
        ({"attacks": Unused(), "heldout": True, "loader": shuffled()}, "shuffling with heldout=True"),
        ({"diagnosis": "long"}, "diagnosis='long': must be short, full or None"),
        ({"certificate": "exact"}, "certificate='exact': must be auto, interval, linear or None"),
    ],
)
def test_bad_settings_are_refused_before_any_work(small_net, small_batches, options, message):
    options = {"loader": small_batches, **options}
    with pytest.raises(ValueError, match=message):
        worstcase.evaluate(Crossbar(small_net, 0.1), progress=False, **options)


def test_the_smaller_th_gs_chip_counts_too_and_the_lowest_is_diagnosed(small_net, small_loader):
    crossbar = Crossbar(small_net, 0.1)
    two = [attacks.FLWC(steps=2), attacks.LWC(epochs=2)]
    result = worstcase.evaluate(crossbar, small_loader, two, thgs=[0.3, 0.0, 0.1], progress=False)
    found = result.attacks
    assert [(one.attack, one.thg) for one in found] == [
        (attack, thg) for attack in ("flwc", "lwc") for thg in (0.0, 0.1, 0.3)
    ]
    for none, small, large in (found[:3], found[3:]):
        assert none.clean_accuracy == none.accuracy >= small.accuracy >= large.accuracy
        assert any(entry.get("start") for entry in large.history)
    lowest = min(found[2].accuracy, found[5].accuracy)
    assert result.diagnosis["thg"] == 0.3 and result.diagnosis["accuracy"] == pytest.approx(lowest)
    assert crossbar.thg == 0.1


class Failing(attacks.FLWC):
    name = "failing"

    def search(self, run):
        raise RuntimeError("the attack failed")


def test_th_g_is_restored_after_an_attack_that_failed(small_net, small_loader):
    crossbar = Crossbar(small_net, 0.1)
    with pytest.raises(RuntimeError, match="the attack failed"):
        worstcase.evaluate(crossbar, small_loader, [Failing()], thgs=[0.2, 0.3], progress=False)
    assert crossbar.thg == 0.1


@pytest.mark.parametrize(
    ("thg", "options"),
    [(0.1, {"stuck": {"weight": torch.tensor([[torch.nan, 1.0], [torch.nan, torch.nan]])}}), ({"*": 0.0}, {})],
)
def test_where_tolerances_cannot_be_scaled_no_largest_th_g_is_searched(thg, options):
    crossbar = Crossbar(nn.Linear(2, 2, bias=False), thg, **options)
    batches = [(torch.eye(2), torch.arange(2))]
    options = {"certificate": "interval", "up_to": True, "progress": False}
    result = worstcase.evaluate(crossbar, batches, [attacks.FLWC()], **options)
    assert result.record().certified_up_to == [] and result.certificates


def test_one_tensor_as_th_g_of_several_arrays_is_saved_and_read_again(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    thg = {"[02].weight": torch.full((4, 4), 0.02)}
    batches = [(torch.eye(4), torch.arange(4))]
    worstcase.evaluate(Crossbar(net, thg), batches, [attacks.FLWC()], progress=False).save(tmp_path)
    again = Crossbar(net, worstcase.load_tolerances(tmp_path / "tolerances.safetensors"))
    chip = load_file(tmp_path / "perturbation.safetensors")
    assert list(again.tolerance) == list(thg) and again.box.contains(chip)


def test_more_proven_than_found_is_an_error(monkeypatch):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(4, 3), torch.randn(50, 4)
    everything = Certificate(method="interval", thg=0.3, certified=torch.ones(50, dtype=torch.bool), seconds=0.0)
    monkeypatch.setattr("worstcase.evaluation.evaluate.certify", lambda *of: everything)
    with pytest.raises(RuntimeError, match=r"not between 1\.0, certified at its th_g 0\.3, and 1\.0"):
        evaluate(Crossbar(net, 0.3), [(x, net(x).argmax(1))], [attacks.FLWC()], progress=False)


@pytest.mark.parametrize("thg", [np.float32(0.25), torch.tensor(0.25), np.array(0.25)])
def test_one_thg_may_be_a_number_of_numpy_or_pytorch(thg, small_net, small_batches):
    result = worstcase.evaluate(
        Crossbar(small_net, 0.1), small_batches, attacks.FLWC(steps=1), thgs=thg, progress=False
    )
    assert [one.thg for one in result.attacks] == [0.25] and type(result.thg) is float


def test_what_is_nearly_alike_is_kept_apart(small_net, small_batches, tmp_path):
    chips, searches = attacks.MonteCarlo(instances=2), [{"epochs": 1, "lr": lr} for lr in (2.0, 3.0)]
    crossbar, thgs = Crossbar(small_net, 0.3), [0.25, 0.1234567, 0.1234568]
    worstcase.evaluate(crossbar, small_batches, chips, thgs=thgs, folder=tmp_path, progress=False)
    names = {f.name for f in tmp_path.iterdir()}
    assert names == {"thg0.25", "thg0.1234567", "thg0.1234568"}
    two = [attacks.LWC(project="end", trials=3, **options) for options in searches]
    worstcase.evaluate(crossbar, small_batches, two, progress=False).save(tmp_path / "saved")
    found = {f.name for f in (tmp_path / "saved").glob("search_for_c*")}
    assert found == {"search_for_c-thg0.3.png", "search_for_c-thg0.3-2.png"}
