"""Benchmarks that cannot be run here to the end are at least tried."""

import json
import subprocess
import sys

from commands import REPOSITORY, environment


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
