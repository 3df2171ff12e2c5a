"""The commands with devices of one's own: what a record says of them is enough to judge the same box again."""

import json
import shutil
import weakref

import pytest
import torch
from commands import QUICK, run, shorten_ensembles
from safetensors.torch import load_file

from worstcase import Crossbar, DeviceMapping, Tolerance, load_run, load_tolerances, save_tolerances
from worstcase.app import naming
from worstcase.app.devices import in_numbers
from worstcase.app.pulses import shared_out
from worstcase.chip.tolerance_file import digest_of
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import NEWER, NO_MAPPING, of_devices, without_place
from worstcase.models import LeNet
from worstcase.verify.cost import Programming

TABLE = "# full_scale_uS = 25\nconductance_uS,sigma_uS\n0,0.1\n25,0.4\n"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A training on a table and a layer of its own, moved to where its table is not."""
    folder = tmp_path_factory.mktemp("devices")
    table = folder / "table.csv"
    table.write_text(TABLE)
    run(
        "src.train",
        *QUICK,
        "method=va",
        "method.sigma=null",
        "method.verified=true",
        f"thg={{fc3*:0.01,*:{table}}}",
        "sigmas=3",
        "mapping.pair=true",
        "mapping.cut_off=true",
        "arrays=[conv1.weight]",
        f"hydra.run.dir={folder / 'run'}",
    )
    table.unlink()
    return shutil.move(folder / "run", tmp_path_factory.mktemp("elsewhere") / "run")


def test_a_record_gives_the_same_box_without_the_table(elsewhere):
    loaded = load_run(elsewhere)
    crossbar, record = loaded.crossbar, loaded.record
    table = Tolerance([0, 1], [-0.012, -0.048], [0.012, 0.048], [0.004, 0.016])
    assert crossbar.tolerance == {"fc3*": 0.01, "*": table}
    assert crossbar.mapping == DeviceMapping(pair=True, cut_off=True)
    assert record.thg == crossbar.thg == pytest.approx(0.048 + 0.012)
    assert record.tolerance == record.config["thg"] == {"fc3*": 0.01, "*": table.plain()}
    assert record.config["arrays"] == ["conv1.weight"]
    (found,) = record.attacks
    assert found.thg == record.thg and crossbar.box.contains(load_file(elsewhere / found.perturbation))


def test_an_evaluation_judges_the_runs_devices_or_others(elsewhere):
    run("src.evaluate", f"run={elsewhere}", "attack=flwc", f"hydra.run.dir={elsewhere / 'same'}")
    same, trained = Record.load(elsewhere / "same"), Record.load(elsewhere)
    assert same.tolerance == trained.tolerance and same.thg == trained.thg
    assert same.config["mapping"] == trained.config["mapping"]
    more = ["sigmas=4", "mapping.pair=false"]
    run("src.evaluate", f"run={elsewhere}", "attack=flwc", *more, f"hydra.run.dir={elsewhere / 'more'}")
    wider = Record.load(elsewhere / "more")
    assert wider.thg == pytest.approx(0.064) and wider.config["mapping"]["cut_off"] is True
    number = ["thg=[0.01,0.02]", "mapping.pair=false"]
    done = run("src.evaluate", f"run={elsewhere}", "attack=flwc", *number)
    folder = next(path for path in (elsewhere / "evaluations").glob("flwc-thg0.01-0.02-*"))
    record = Record.load(folder)
    assert record.tolerance is None and [found.thg for found in record.attacks] == [0.01, 0.02]
    assert "lowest found (flwc) at th_g 0.02" in done.stdout
    refused = run("src.evaluate", f"run={elsewhere}", "thg=[0.01,0.02]", fails=True).stderr
    assert "with mapping.pair=true thg is a device's" in refused


def test_monte_carlo_draws_from_the_table(elsewhere):
    words = [
        "attack=monte_carlo",
        "attack.instances=5",
        f"run={elsewhere}",
        f"hydra.run.dir={elsewhere / 'drawn'}",
    ]
    run("src.evaluate", *words)
    record = Record.load(elsewhere / "drawn")
    assert record.attacks[0].distribution["infeasible"] == 0
    header = json.loads((elsewhere / "drawn" / "instances.csv").read_text().splitlines()[0][2:])
    assert "Tolerance(conductance=(0.0, 1.0)" in header["each_device"]


def test_a_record_with_a_table_that_cannot_be_is_refused(elsewhere, tmp_path):
    broken = shutil.copytree(elsewhere, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((broken / "results.json").read_text())
    for table in ({"conductance": [0, 1], "lower": [0, "a"], "upper": [0, 0]}, "table.csv", {"*": "table.csv"}):
        content["config"]["thg"] = table
        (broken / "results.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"holds no record of a run: config\.thg"):
            load_run(broken)
    content["config"]["thg"] = {"*": {"conductance": [0, 1], "lower": [0, 1], "upper": [0, 0]}}
    (broken / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"lower\[1\]=1.*: must be -1\.\.0"):
        load_run(broken)


# ---- a file with th_g of each weight


@pytest.fixture(scope="module")
def in_a_file(tmp_path_factory):
    """A training with th_g of each weight, moved to where its file is not, and the tolerances."""
    folder = tmp_path_factory.mktemp("file")
    torch.manual_seed(0)
    thg = {name: 0.02 * torch.rand(w.shape) for name, w in Crossbar(LeNet(), 0.1).programmed().items()}
    save_tolerances(folder / "own.safetensors", thg)
    words = [f"thg={folder / 'own.safetensors'}", "method=universal_at", f"hydra.run.dir={folder / 'run'}"]
    run("src.train", *QUICK, *words)
    moved = shutil.move(folder / "run", tmp_path_factory.mktemp("elsewhere") / "run")
    return moved, folder / "own.safetensors", thg


def test_a_run_of_each_weights_th_g_is_loaded_and_attacked_again_without_its_file(in_a_file, tmp_path):
    trained, _, thg = in_a_file
    record, crossbar = Record.load(trained), load_run(trained).crossbar
    assert all(torch.equal(crossbar.tolerance[name], t) for name, t in thg.items())
    assert crossbar.box.contains(load_file(trained / record.attacks[0].perturbation))
    said = record.tolerance
    assert said["digest"] == record.config["thg"]["digest"] == digest_of(thg) and "weight" not in said
    assert said["by_array"]["fc1.weight"]["mean"] == pytest.approx(0.01, rel=0.02)
    assert record.thg == said["largest"] == max(t.max().item() for t in thg.values())
    words = [f"run={trained}", "attack=monte_carlo", "attack.instances=3", "dataset.limit=50", "attack.sigma=0.02"]
    run("src.evaluate", *words, "attack.weight_bits=4", "attack.device_bits=2", f"hydra.run.dir={tmp_path / 'e'}")
    drawn = Record.load(tmp_path / "e")
    assert drawn.tolerance == said and drawn.attacks[0].distribution["infeasible"] == 0
    assert (tmp_path / "e" / said["file"]).is_file()


def test_a_foreign_record_of_a_file_reads_only_its_own_folder(in_a_file, tmp_path):
    trained, file, _ = in_a_file
    foreign = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    content = json.loads((foreign / "results.json").read_text())
    content["config"]["thg"]["file"] = str(file)
    (foreign / "results.json").write_text(json.dumps(content))
    (foreign / "tolerances.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"no file of tolerances at {foreign}"):
        load_run(foreign)
    save_tolerances(foreign / "tolerances.safetensors", {"*": 0.5})
    with pytest.raises(ValueError, match="holds other tolerances than those of the record"):
        load_run(foreign)
    content["config"]["thg"] = {"file": str(file), "digest": 5, "largest": 0.1, "by_array": {}}
    (foreign / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"holds no record of a run: config\.thg"):
        load_run(foreign)


def test_a_job_is_what_is_in_its_file(in_a_file, tmp_path):
    _, file, thg = in_a_file
    save_tolerances(tmp_path / "again.safetensors", thg)
    save_tolerances(tmp_path / "other.safetensors", {**thg, "fc3.weight": 0.01})
    save_tolerances(tmp_path / "numbers.safetensors", {"conv*": 0.01, "fc*": 0.03})
    said = [in_numbers(str(tmp_path / f"{name}.safetensors"), None) for name in ("again", "other", "numbers")]
    mine = in_numbers(str(file), None)
    assert in_numbers(mine, None) == mine != said[0]
    ids = [without_place({"thg": one}) for one in (mine, *said)]
    assert ids[0] == ids[1] and len({json.dumps(one) for one in ids}) == 3
    assert said[2] == {"conv*": 0.01, "fc*": 0.03}
    with pytest.raises(ValueError, match="sigmas=2: thg has no standard deviations"):
        in_numbers(str(file), 2.0)
    with pytest.raises(ValueError, match=r"a \.safetensors file by itself"):
        in_numbers({"*": str(file)}, None)


def test_a_file_that_does_not_fit_is_one_line(trained, tmp_path):
    save_tolerances(tmp_path / "own.safetensors", {"fc1.weight": torch.ones(3)})
    words = ["src.evaluate", f"run={trained}", "attack=flwc", f"thg={tmp_path / 'own.safetensors'}"]
    said = run(*words, f"hydra.run.dir={tmp_path / 'e'}", fails=True).stderr
    assert "no pattern fits the array conv1.weight" in said.splitlines()[-1] and "Traceback" not in said
    (tmp_path / "own.safetensors").write_bytes(b"x")
    said = run(*words, f"hydra.run.dir={tmp_path / 'f'}", fails=True).stderr
    assert "is no safetensors file of tolerances" in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "f").exists()


def test_the_device_tool_shows_what_a_file_costs(in_a_file):
    _, file, thg = in_a_file
    words = ["--table", file, "--weight-bits", "4", "--device-bits", "2"]
    lines = run("worstcase.device", *words).stdout.splitlines()
    line = next(line for line in lines if line.startswith("fc1.weight"))
    pulses = Programming(sigma=0.1, weight_bits=4, device_bits=2).pulses(thg["fc1.weight"]).mean().item()
    assert line.split()[-1] == f"{pulses:.3g}"
    assert float(line.split()[3]) == pytest.approx(0.01, rel=0.02)


# ---- pulses shared out


def test_pulses_are_shared_out_before_an_attack(trained, tmp_path):
    words = ["src.evaluate", f"run={trained}", "attack=flwc", "dataset.limit=100", "certificate=null"]
    for share in ("same", "swim", "array"):
        at = [f"share={share}", "pulses=4", f"hydra.run.dir={tmp_path / share}"]
        run(*words, *at, before=(shorten_ensembles,))
    same, swim, array = (Record.load(tmp_path / share) for share in ("same", "swim", "array"))
    assert same.thg == pytest.approx(Programming().bound_of(4.0), rel=1e-4)
    thg = load_tolerances(tmp_path / "swim" / "tolerances.safetensors")
    pulses = Programming().pulses(torch.cat([one.flatten() for one in thg.values()])).mean().item()
    assert pulses == pytest.approx(4, rel=1e-3) and swim.tolerance["digest"] == digest_of(thg)
    assert set(array.tolerance) == set(thg) and array.thg == max(array.tolerance.values())
    ids = [without_place(record.config) for record in (same, swim, array)]
    assert ids[0]["share"] == "same" and len({json.dumps(one) for one in ids}) == 3
    nothing = {**same.config, "pulses": None}
    assert not {"pulses", "share", "programming"} & without_place(nothing).keys()


class EvaluationOnly:
    def val_dataloader(self):
        raise FileNotFoundError("this data is for evaluation only")


class Streamed:
    """Validation images of which one batch at a time is in memory."""

    def __init__(self, batches):
        self.batches, self.held = batches, []

    def val_dataloader(self):
        return self

    def __iter__(self):
        for images, labels in self.batches:
            assert sum(one() is not None for one in self.held) <= 1
            images = images.clone()
            self.held.append(weakref.ref(images))
            yield images, labels


@pytest.mark.parametrize("share", ["same", "random", "magnitude", "first_and_last"])
def test_some_ways_to_share_out_pulses_need_no_images(share, small_net):
    programming = {"weight_bits": None, "device_bits": 2}
    settings = {"share": share, "pulses": 4.0, "seed": 0, "programming": programming}
    assert shared_out(settings, Crossbar(small_net, 0.1), EvaluationOnly()).keys() == {"0.weight", "5.weight"}
    with pytest.raises(FileNotFoundError, match="for evaluation only"):
        shared_out({**settings, "share": "swim"}, Crossbar(small_net, 0.1), EvaluationOnly())


def test_images_by_which_pulses_are_shared_out_are_not_all_held_in_memory(small_net):
    batches = [(torch.randn(4, 1, 6, 6), torch.arange(4) % 3) for _ in range(5)]
    programming = {"weight_bits": None, "device_bits": 2}
    settings = {"share": "swim", "pulses": 4.0, "seed": 0, "programming": programming}
    shared_out(settings, Crossbar(small_net, 0.1), Streamed(batches))


def test_a_sweep_over_pulses_trains_each_network_once(tmp_path):
    words = ["src.train", "-m", *QUICK, "certificate=null", "pulses=4,8", "share=same,swim"]
    log = run(*words, f"hydra.sweep.dir={tmp_path}", before=(shorten_ensembles,)).stderr
    assert log.count("epoch 1 of 1") == 1 and log.count("trained already in ") == 3
    folders = {tuple(folder.name.split("-")[:2]): folder for folder in tmp_path.glob("*/*/pulses*")}
    records = {at: Record.load(folder) for at, folder in folders.items()}
    assert records.keys() == {(f"pulses{n}", share) for n in (4, 8) for share in ("same", "swim")}
    assert len({record.clean_accuracy for record in records.values()}) == 1
    assert records["pulses4", "same"].thg == pytest.approx(Programming().bound_of(4.0), rel=1e-4)
    thg = load_tolerances(folders["pulses8", "swim"] / "tolerances.safetensors")
    pulses = Programming().pulses(torch.cat([one.flatten() for one in thg.values()])).mean().item()
    assert pulses == pytest.approx(8, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "said"), [(["pulses=1"], "above 2"), (["pulses=4", "mapping.pair=true"], "be shared")]
)
def test_a_training_refuses_pulses_that_cannot_be_shared_out_before_it_begins(words, said, tmp_path):
    log = run("src.train", *QUICK, *words, f"hydra.run.dir={tmp_path / 'r'}", fails=True).stderr
    assert said in log.splitlines()[-1] and "epoch 1 of" not in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pulses=1"], "pulses=1.0: must be above 2 and 2e+06 or less, a weight"),
        (["pulses=4", "share=best"], "share=best: must be same or random"),
        (["pulses=4", "thg=[0.01,0.02]"], "with pulses=4: th_g follows from pulses; say one of them"),
        (["pulses=4", "thg=0.02"], "thg=0.02 with pulses=4: th_g follows from pulses"),
        (["pulses=4", "mapping.pair=true"], "pulses cannot be shared out: only where each weight has a number"),
    ],
)
def test_pulses_that_cannot_be_shared_out_are_one_line(words, said, trained, tmp_path):
    words = ["src.evaluate", f"run={trained}", "attack=flwc", *words, f"hydra.run.dir={tmp_path / 'e'}"]
    error = run(*words, fails=True).stderr
    assert said in error.splitlines()[-1] and "Traceback" not in error


# ---- what identifies a job


def test_a_job_of_which_no_devices_are_said_is_the_job_that_it_was():
    old = {"thg": 0.03, "seed": 0, "method": {"name": "va"}}
    new = old | {"arrays": [], "sigmas": None, "mapping": NO_MAPPING, "method": {"name": "va", "verified": False}}
    assert without_place(old) == without_place(new) and of_devices(new) == {}
    turned = [{"thg": {"fc*": 0.01, "*": 0.03}}, {"thg": {"*": 0.03, "fc*": 0.01}}]  # the first that fits counts
    assert naming._digest(old | turned[0]) != naming._digest(old | turned[1])
    for other in ({"arrays": ["w"]}, {"mapping": NO_MAPPING | {"pair": True}}, {"thg": {"*": 0.03}}):
        assert without_place(new | other) != without_place(new)


def test_a_job_is_its_table_not_the_file(tmp_path):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text(TABLE), other.write_text(TABLE)
    assert in_numbers(str(one), None) == in_numbers(str(other), 2.0)
    other.write_text(TABLE.replace("0.4", "0.5"))
    assert in_numbers(str(one), None) != in_numbers(str(other), None)
    again = in_numbers(in_numbers(str(one), None), 3.0)
    assert again == in_numbers(str(one), 3.0) != in_numbers(str(one), None)
    assert in_numbers(0.03, None) == 0.03 and in_numbers({"fc*": 0}, None) == {"fc*": 0.0}


def test_the_samplers_of_a_table_are_those_of_its_box(elsewhere):
    crossbar = load_run(elsewhere).crossbar
    sigma = crossbar.sigma()["fc1.weight"] / crossbar.full_scales()["fc1.weight"]
    assert sigma.min() >= 0.004 * 2**0.5 - 1e-9 and sigma.max() == pytest.approx((0.016**2 + 0.004**2) ** 0.5)
    assert torch.equal(crossbar.sigma()["fc3.weight"].unique(), crossbar.sigma()["fc3.weight"].reshape(-1)[:1])


OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.projection = nn.Parameter(torch.randn(784, 16) / 28)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head((x.flatten(1) @ self.projection).relu())
"""


def test_parameters_that_are_named_are_programmed_in_every_command(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(OWN)
    run("worstcase", "train", "net=own_net:Net", "arrays=[proj*]", "method=vanilla", *QUICK, at=tmp_path)
    (trained,) = tmp_path.glob("outputs/*/vanilla/*")
    record = Record.load(trained)
    assert record.config["arrays"] == ["proj*"] and record.parameters_perturbed == 784 * 16 + 160
    monkeypatch.syspath_prepend(tmp_path)
    assert set(load_run(trained, net="own_net:Net").crossbar.programmed()) == {"projection", "head.weight"}
    words = [f"run={trained}", "net=own_net:Net", "attack=flwc"]
    run("worstcase", "evaluate", *words, at=tmp_path)
    run("worstcase", "evaluate", *words, "arrays=[]", at=tmp_path)
    evaluations = [Record.load(folder) for folder in (trained / "evaluations").iterdir()]
    assert sorted(one.parameters_perturbed for one in evaluations) == [160, 784 * 16 + 160]


@pytest.mark.parametrize(("place", "key"), [(place, key) for place, newer in NEWER.items() for key in newer])
def test_a_setting_that_came_later_leaves_a_job_what_it_was(place, key):
    def job(**settings):
        for group in reversed(place):
            settings = {group: {"name": "va"} | settings}
        return {"seed": 0} | settings

    assert without_place(job()) == without_place(job(**{key: NEWER[place][key]}))
    assert without_place(job()) != without_place(job(**{key: "said"}))


def test_a_job_with_numbers_as_keys_is_the_one_of_its_record():
    """As of Lightning's GradientAccumulationScheduler; JSON makes words of them."""
    said = {"callbacks": {"slower": {"scheduling": {0: 1, 4: 2}}}}
    assert without_place(json.loads(json.dumps(said))) == without_place(said)
