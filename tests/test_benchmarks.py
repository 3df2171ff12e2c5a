"""Benchmarks that cannot be run here to the end are at least tried."""

import json
import subprocess
import sys

import pytest
import torch
from commands import REPOSITORY, environment

from benchmarks import peers, plainly
from worstcase import Crossbar
from worstcase.attacks import FLWC


@pytest.mark.slow
def test_the_gpu_script_on_the_cpu(tmp_path):
    script = [str(REPOSITORY / "benchmarks" / "gpu.sh"), str(tmp_path), "--dry-run"]
    done = subprocess.run(
        script, env=environment() | {"PYTHON": sys.executable}, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"].startswith("CPU, dry run") and results["machine"].endswith("tests passed")
    jobs = {row["job"] for row in results["rows"]}
    assert {"flwc", "chip of Monte Carlo", "interval proof", "step of vanilla", "step of universal_at"} <= jobs
    assert all(row["ratio"] > 0 for row in results["rows"])
    assert (tmp_path / "table.md").read_text().count("\n| ") == len(results["rows"]) + 1


def test_the_plain_attacks_find_what_ours_do_and_put_the_weights_back(small_net, small_batches):
    before = {name: t.clone() for name, t in small_net.eval().state_dict().items()}
    found = FLWC()(Crossbar(small_net, 0.3), small_batches, progress=False)
    assert plainly.flwc(small_net, small_batches, 0.3) == pytest.approx(found.accuracy, abs=0.05)
    assert found.accuracy < found.clean_accuracy - 0.1
    assert plainly.lwc(small_net, small_batches, 0.3, epochs=3, trials=3) < found.clean_accuracy
    assert all(torch.equal(before[name], t) for name, t in small_net.state_dict().items())


def test_peers_are_compared_and_those_that_are_not_here_are_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    monkeypatch.setattr(peers, "IMAGES", 2 * peers.BATCH)
    rows = {peer: times for peer, *times in peers.compared("lenet", limit=0)}
    assert {"worstcase", "plain loop"} <= rows.keys() and "aihwkit" not in rows
    assert all(chip > 0 and step > 0 for chip, step in rows.values())
    assert "lenet: aihwkit is skipped: ModuleNotFoundError" in capsys.readouterr().out
