"""Monte Carlo on a network whose accuracies have a closed form, and what may not change an instance."""

import json
import math
import signal
import time

import pytest
import torch
from commands import forked
from torch import nn

from worstcase import Crossbar, DeviceMapping
from worstcase.attacks import MonteCarlo
from worstcase.attacks.instances import FILE

ALL = ["gaussian", "truncated_gaussian", "right_censored_gaussian", "uniform", "vertex", "programmed"]


class OneWeight(nn.Module):
    """Logits w and c of an input (1, c): with the c spread over [0.5, 1.5] the accuracy is w - 0.5."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, x):
        return torch.cat([self.layer(x[:, :1]), x[:, 1:]], dim=1)


STEPS = 1000
LEVELS = torch.stack([torch.ones(STEPS), 0.5 + (torch.arange(STEPS) + 0.5) / STEPS], dim=1)
REFERENCE = [(LEVELS, torch.zeros(STEPS, dtype=torch.long))]


def sample(crossbar, batches, folder=None, seed=0, **options):
    return MonteCarlo(**options)(crossbar, batches, seed=seed, folder=folder, progress=False)


def normal_quantile(share):
    return math.sqrt(2) * torch.erfinv(torch.tensor(2 * share - 1)).item()


def truncated_quantile(share, tolerance):
    inside = math.erf(tolerance / math.sqrt(2))
    return normal_quantile((1 - inside) / 2 + share * inside)


# quantiles of the weight's deviation at th_g = 0.2
CLOSED = {
    "uniform": ({}, lambda p: 0.2 * (2 * p - 1)),
    "truncated_gaussian": ({}, lambda p: 0.2 * truncated_quantile(p, 1)),
    "truncated_gaussian, narrow": ({"sigma": 0.1}, lambda p: 0.1 * truncated_quantile(p, 2)),
    "programmed": ({"sigma": 0.1}, lambda p: 0.1 * truncated_quantile(p, 2)),
    "gaussian": ({}, lambda p: 0.2 * normal_quantile(p)),
    "gaussian, narrow": ({"sigma": 0.05}, lambda p: 0.05 * normal_quantile(p)),
    "right_censored_gaussian": (
        {"sigma": 0.1, "threshold": -0.5},
        lambda p: 0.1 * min(-0.5, normal_quantile(p)),
    ),
    "vertex": ({}, lambda p: -0.2 if p < 0.5 else 0.2),
}


@pytest.mark.parametrize("name", CLOSED)
def test_percentiles_of_one_weight(name, monkeypatch):
    monkeypatch.setattr("worstcase.attacks.monte_carlo.BATCH", STEPS)  # in one piece, which is faster
    options, quantile = CLOSED[name]
    found = sample(
        Crossbar(OneWeight(), 0.2), REFERENCE, instances=2000, sampler=name.split(",")[0], **options
    ).distribution
    assert [kpp["percent"] for kpp in found["kpp"]] == [50, 10, 1, 0.1]
    for kpp in found["kpp"][1:3] if name == "vertex" else found["kpp"][:3]:
        truth = 0.5 + quantile(kpp["percent"] / 100)
        assert kpp["accuracy"] == pytest.approx(truth, abs=0.03)
        assert kpp["low"] - 0.001 <= truth <= kpp["high"] + 0.001
    assert found["kpp"][3]["low"] is None  # 2,000 chips do not bound the worst of 1,000 from below
    assert found["minimum"] == min(found["accuracies"]) and len(found["accuracies"]) == 2000


def test_chips_outside_the_box_count_but_are_not_reported():
    crossbar = Crossbar(OneWeight(), 0.2)
    found = sample(crossbar, REFERENCE, instances=500, sampler="gaussian", sigma=0.2)
    outside = math.erfc(1 / math.sqrt(2))
    assert found.distribution["infeasible"] / 500 == pytest.approx(outside, abs=0.08)
    assert found.distribution["minimum"] < 0.3 - 0.01 <= found.accuracy < 0.32
    assert found.feasible and found.accuracy == pytest.approx(
        0.5 + found.perturbation["layer.weight"].item(), abs=0.001
    )


def test_a_gaussian_needs_no_bound():
    found = sample(Crossbar(OneWeight(), 0.0), REFERENCE, instances=50, sampler="gaussian", sigma=0.1)
    assert found.distribution["infeasible"] == 50 and 0.05 < found.distribution["deviation"] < 0.15
    assert found.accuracy == found.clean_accuracy and not found.perturbation["layer.weight"].any()


def test_weights_that_may_not_move_are_exact(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    attack = MonteCarlo(instances=20, sampler="gaussian", sigma=0.01)
    found = attack(crossbar, small_batches, box=crossbar.box.restricted_to({"0.weight": 1.0}), progress=False)
    assert not found.perturbation["5.weight"].any() and found.perturbation["0.weight"].any()


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("devices", [{}, {"weight_bits": 4, "device_bits": 2}])
def test_an_instance_depends_on_its_index_and_the_seed_alone(sampler, devices, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.5)

    def accuracies(batches=small_batches, **options):
        return sample(crossbar, batches, sampler=sampler, **devices, **options).distribution["accuracies"]

    whole = accuracies(instances=40)
    assert len(set(whole)) > 3
    assert accuracies(instances=25) + accuracies(first=25, instances=15) == whole
    images, labels = (torch.cat(parts) for parts in zip(*small_batches, strict=True))
    assert accuracies([(images, labels)], instances=40) == whole
    assert accuracies(list(zip(images.split(1), labels.split(1), strict=True)), instances=40) == whole
    assert accuracies(instances=40, seed=1) != whole
    assert accuracies(instances=40, seed=2**32) != whole  # of which torch's CPU generator sees no more than a 0


def test_devices_make_a_weight_vary_less():
    deviation = [
        sample(Crossbar(OneWeight(), 0.2), REFERENCE, instances=500, **devices).distribution["deviation"]
        for devices in ({}, {"weight_bits": 4, "device_bits": 2})
    ]
    assert deviation[1] / deviation[0] == pytest.approx(math.sqrt(1 + 16) / 5, rel=0.1)


def test_the_devices_of_the_mapping_are_drawn(small_net, small_batches):
    mapped = Crossbar(small_net, 0.5, weight_bits=4, mapping=DeviceMapping(device_bits=2))
    said = sample(Crossbar(small_net, 0.5, weight_bits=4), small_batches, weight_bits=4, device_bits=2)
    assert sample(mapped, small_batches).distribution["accuracies"] == said.distribution["accuracies"]
    with pytest.raises(ValueError, match=r"device_bits=1: only where .* here the mapping tells the devices"):
        sample(mapped, small_batches, weight_bits=4, device_bits=1)


def test_instances_share_a_pass_over_the_data(small_net, small_batches):
    class Counted(list):
        passes = 0

        def __iter__(self):
            type(self).passes += 1
            return super().__iter__()

    sample(Crossbar(small_net, 0.1), Counted(small_batches), instances=40)
    assert Counted.passes == 2 + 3  # clean, worst; 16, 16 and 8 instances


def test_a_network_that_needs_contiguous_activations_gets_them(small_net, small_batches):
    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    expected = sample(Crossbar(small_net, 0.3), small_batches, instances=20)
    small_net[3] = View()
    found = sample(Crossbar(small_net, 0.3), small_batches, instances=20)
    assert found.distribution == expected.distribution


def test_ranges_of_two_machines_are_put_together(small_net, small_batches, tmp_path):
    crossbar = Crossbar(small_net, 0.3)
    whole = sample(crossbar, small_batches, instances=40)
    sample(crossbar, small_batches, tmp_path / "a", instances=20)
    sample(crossbar, small_batches, tmp_path / "b", first=20, instances=20)
    with (tmp_path / "a" / FILE).open("a") as both:
        both.write((tmp_path / "b" / FILE).read_text())
    seen = []
    crossbar.register_forward_hook(lambda *_: seen.append(1))
    small_net.register_forward_hook(lambda *_: seen.append(1))
    together = sample(crossbar, small_batches, tmp_path / "a", instances=40)
    assert len(seen) <= 14  # the clean and the worst chip alone
    assert together.distribution == whole.distribution and together.passes == whole.passes
    lines = (tmp_path / "a" / FILE).read_text().splitlines()
    shares = [float(line.split(",")[3]) for line in lines if line[0].isdigit()]
    assert len(shares) == 40 and min(shares) > 0
    assert together.seconds > sum(shares)  # the machines', and what this run took
    assert torch.equal(together.perturbation["5.weight"], whole.perturbation["5.weight"])


def without_seconds(folder):
    return [line.rpartition(",")[0] for line in (folder / FILE).read_text().splitlines()]


@pytest.mark.parametrize("cut", [1, 3, 12])
def test_a_torn_last_line_is_drawn_again(cut, small_net, small_batches, tmp_path):
    crossbar = Crossbar(small_net, 0.3)
    whole = sample(crossbar, small_batches, tmp_path, instances=20)
    content, lines = (tmp_path / FILE).read_bytes(), without_seconds(tmp_path)
    (tmp_path / FILE).write_bytes(content[:-cut])
    assert sample(crossbar, small_batches, tmp_path, instances=20).distribution == whole.distribution
    assert without_seconds(tmp_path) == lines
    for start in (b"", content[:10], content[: content.index(b"\n") + 4]):  # killed within the head
        (tmp_path / FILE).write_bytes(start)
        sample(crossbar, small_batches, tmp_path, instances=20)
        assert without_seconds(tmp_path) == lines


def test_a_file_whose_lines_windows_ended_goes_on(small_net, small_batches, tmp_path):
    def drawn(instances):
        attack = MonteCarlo(instances=instances)
        return attack(Crossbar(small_net, 0.05), small_batches, folder=tmp_path, progress=False).distribution

    file = tmp_path / "instances.csv"
    drawn(6)
    ended = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(ended)
    assert drawn(6)["accuracies"] == drawn(9)["accuracies"][:6]
    assert file.read_bytes().startswith(ended) and file.read_bytes().count(b"\n") == 2 + 9


def test_instances_of_something_else_are_refused(small_net, small_batches, tmp_path):
    sample(Crossbar(small_net, 0.1), small_batches, tmp_path, instances=2)
    before = (tmp_path / FILE).read_bytes()
    other = [(images + 1e-3, labels) for images, labels in small_batches]
    for message, changed in {
        r"thg is 0\.1, not 0\.2": lambda: sample(Crossbar(small_net, 0.2), small_batches, tmp_path),
        "seed is 0, not 1": lambda: sample(Crossbar(small_net, 0.1), small_batches, tmp_path, seed=1),
        "sampler is 'truncated_gaussian', not 'vertex'": lambda: sample(
            Crossbar(small_net, 0.1), small_batches, tmp_path, sampler="vertex"
        ),
        "sigma is None, not 0.2": lambda: sample(Crossbar(small_net, 0.1), small_batches, tmp_path, sigma=0.2),
        "network is": lambda: sample(Crossbar(small_net, 0.1, weight_bits=4), small_batches, tmp_path),
        "data is '40 [^']*', not '40 ": lambda: sample(Crossbar(small_net, 0.1), other, tmp_path),
        "samples is 40, not 16": lambda: sample(Crossbar(small_net, 0.1), small_batches[:1], tmp_path),
    }.items():
        with pytest.raises(ValueError, match=message):
            changed()
    with torch.no_grad():
        small_net[5].bias[0] += 1e-3
    with pytest.raises(ValueError, match="holds other instances: network is"):
        sample(Crossbar(small_net, 0.1), small_batches, tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


def test_other_data_with_the_same_mask_are_not_taken_over(tmp_path):
    net, labels = nn.Linear(6, 3), torch.arange(40) % 3
    with torch.no_grad():
        net.weight[:, 3:] = 0
    first, second = (torch.randn(40, 6) for _ in range(2))
    first[:, 3:] = second[:, 3:] = torch.finfo(torch.float32).min
    second[:, :3] = first[:, :3] + 1e-3
    sample(Crossbar(net, 1e-9), [(first, labels)], tmp_path, instances=2)
    with pytest.raises(ValueError, match="holds other instances: data is"):
        sample(Crossbar(net, 1e-9), [(second, labels)], tmp_path, instances=2)


def test_a_file_of_an_earlier_version_goes_on(small_net, small_batches, tmp_path):
    whole = sample(Crossbar(small_net, 0.1), small_batches, tmp_path / "new", instances=4)
    text = (tmp_path / "new" / FILE).read_text().splitlines(keepends=True)
    identity = json.loads(text[0].removeprefix("# "))
    del identity["data"]
    (tmp_path / FILE).write_text("".join([f"# {json.dumps(identity)}\n", *text[1:4]]))
    again = sample(Crossbar(small_net, 0.1), small_batches, tmp_path, instances=4)
    assert again.distribution == whole.distribution


@pytest.mark.parametrize("content", ["notes", "notes\nof mine\n", "0,40,1\n", "# {}\n", "# 3\n", "#\n"])
def test_foreign_files_are_refused_and_left_alone(content, small_net, small_batches, tmp_path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"is no file of Monte Carlo.s instances|holds other instances"):
        sample(Crossbar(small_net, 0.1), small_batches, tmp_path)
    assert (tmp_path / FILE).read_text() == content


def test_a_line_torn_before_others_were_appended_is_named(small_net, small_batches, tmp_path):
    sample(Crossbar(small_net, 0.1), small_batches, tmp_path, instances=2)
    with (tmp_path / FILE).open("a") as file:
        file.write("12,3# {}\n")
    with pytest.raises(ValueError, match=r"line 5 is torn: '12,3# \{\}'"):
        sample(Crossbar(small_net, 0.1), small_batches, tmp_path)


class Slow(list):
    def __iter__(self):
        time.sleep(0.05)
        return super().__iter__()


def slowly(folder, out):
    """Sample chips in a process of its own, and say what was found."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    batches = Slow((torch.randn(20, 8), torch.randint(3, (20,))) for _ in range(2))
    found = sample(Crossbar(net, 0.5), batches, folder, seed=7, instances=400)
    perturbation = {name: d.tolist() for name, d in found.perturbation.items()}
    out.write_text(json.dumps([found.distribution, found.accuracy, found.passes, found.history, perturbation]))


def test_killed_and_resumed_it_is_the_uninterrupted_run(tmp_path):
    def start(folder, out):
        process = forked.Process(target=slowly, args=(tmp_path / folder, tmp_path / out))
        process.start()
        return process

    start("whole", "whole.json").join(timeout=120)
    file = tmp_path / "killed" / FILE
    process = start("killed", "killed.json")
    until = time.monotonic() + 120
    while not file.exists() or file.read_text().count("\n") < 30:
        assert process.exitcode is None and time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "killed.json").exists()
    assert 30 <= file.read_text().count("\n") < 400
    start("killed", "killed.json").join(timeout=120)
    whole, resumed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert resumed == whole
    assert without_seconds(tmp_path / "killed") == without_seconds(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": 0}, "instances=0: must be 1 or more"),
        ({"first": -1}, "first=-1: must be 0 or more"),
        ({"sampler": "normal"}, "sampler='normal': must be gaussian, "),
        ({"sampler": "uniform", "sigma": 0.1}, "sigma=0.1: uniform has no sigma"),
        ({"threshold": 1.0}, "threshold=1.0: truncated_gaussian has no threshold"),
        ({"max_pulses": 3}, "max_pulses=3: truncated_gaussian has no max_pulses"),
        ({"sampler": "programmed", "max_pulses": 0}, "max_pulses=0: must be a whole number from 1 to "),
        ({"sampler": "programmed", "max_pulses": 10**16}, "max_pulses=10000000000000000: must be a whole number"),
        ({"sampler": "programmed", "max_pulses": 9.0}, r"max_pulses=9\.0: must be a whole number"),
        ({"instances": 1.5}, r"instances=1\.5: must be a whole number, 1 or more"),
        ({"instances": True}, "instances=True: must be a whole number, 1 or more"),
        ({"first": 0.0}, r"first=0\.0: must be a whole number, 0 or more"),
        ({"sigma": math.inf}, "sigma=inf: must be above 0 and finite"),
        ({"sigma": "0.1"}, "sigma='0.1': must be a number, above 0"),
        (
            {"sampler": "right_censored_gaussian", "threshold": math.nan},
            "threshold=nan: must be finite, in units of sigma",
        ),
        ({"weight_bits": 33, "device_bits": 1}, "weight_bits=33: must be a whole number from 1 to 32"),
        ({"weight_bits": 4, "device_bits": 2.0}, r"device_bits=2\.0: must be a whole number from 1 to 32"),
        ({"sigma": 0.0}, r"sigma=0\.0: must be above 0"),
        ({"weight_bits": 4}, "together"),
        ({"weight_bits": 4, "device_bits": 3}, "not divisible"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        MonteCarlo(**options)
