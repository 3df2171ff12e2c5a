"""The commands with devices of one's own: what a record says of them is enough to judge the same box again."""

import json
import shutil

import pytest
import torch
from commands import QUICK, run
from safetensors.torch import load_file

from worstcase import DeviceMapping, Tolerance, load_run
from worstcase.app import naming
from worstcase.app.devices import in_numbers
from worstcase.evaluation.record import Record
from worstcase.evaluation.settings import NO_MAPPING, of_devices, without_place

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
    assert "Tolerance(conductance=(0.0, 1.0)" in header["devices"]


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
