"""How many threads a job computes with."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import joblib
import pytest
import torch
from commands import QUICK, refusal, run
from torch import nn

from worstcase import Crossbar
from worstcase.app import threads
from worstcase.evaluation.settings import without_place
from worstcase.models import ConvNet, LeNet


def data_of(shape):
    return SimpleNamespace(test_dataloader=lambda: [(torch.rand(5, *shape), torch.zeros(5, dtype=torch.long))])


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "GIVEN", "")
    monkeypatch.delenv(threads.BY_USER, raising=False)
    monkeypatch.setenv(threads.OMP, "")  # restored after the test
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    before = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(before)


def used(settings, make, shape):
    threads.use_threads(settings, Crossbar(make(), 0.03), data_of(shape))
    return torch.get_num_threads()


LENET, CONVNET = (LeNet, (1, 28, 28)), (ConvNet, (3, 32, 32))


def test_a_small_network_takes_one_thread_and_a_large_one_all_cores(eight_cores):
    assert used({"threads": "auto"}, *LENET) == 1
    assert used({"threads": "auto"}, *CONVNET) == 8
    assert used({"threads": "auto", "trainer": {"devices": 4}}, *CONVNET) == 2


def test_what_is_said_wins_first_of_the_command_then_of_the_user(eight_cores):
    eight_cores.setenv(threads.BY_USER, "3,2")
    assert used({"threads": "auto"}, *LENET) == used({"threads": "auto"}, *CONVNET) == 3
    assert used({"threads": 2}, *CONVNET) == 2


def test_the_share_of_a_launcher_is_a_limit_not_a_wish(eight_cores):
    eight_cores.setattr(threads, "GIVEN", "4")
    eight_cores.setenv(threads.BY_USER, "")
    assert used({"threads": "auto"}, *LENET) == 1
    assert used({"threads": "auto"}, *CONVNET) == 4


IN_WORKERS = """
import os
from joblib import Parallel, delayed
from worstcase.app import threads

def seen():
    from worstcase.app import threads
    return os.environ[threads.BY_USER], threads.GIVEN, threads.cores()

threads.remember()
print(Parallel(n_jobs=2)(delayed(seen)() for _ in range(2)))
"""


def test_the_jobs_of_joblib_have_a_share_of_the_cores_and_know_what_the_user_said():
    def workers(**said):
        environment = {key: value for key, value in os.environ.items() if "OMP_NUM_THREADS" not in key} | said
        script = [sys.executable, "-c", IN_WORKERS]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    share = max(1, joblib.cpu_count() // 2)
    assert workers() == str([("", str(share), share)] * 2)
    assert workers(OMP_NUM_THREADS="1") == str([("1", "1", 1)] * 2)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(20, 30, batch_first=True), nn.Linear(30, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def test_operations_are_those_of_one_sample():
    layer = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    assert threads.flops(Crossbar(layer, 0.1), data_of((3, 4))) == 2 * (12 * 5 + 5 * 2)
    lstm = Crossbar(Recurrent(), 0.1)
    assert threads.flops(lstm, data_of((7, 20))) >= 2 * lstm.coverage().weights
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    of_one = threads.flops(
        Crossbar(nn.Sequential(attention, nn.Flatten(), nn.Linear(80, 2)), 0.1), data_of((5, 16))
    )
    assert of_one >= 2 * 5 * (4 * 16 * 16 + 2 * 16 * 32)


@pytest.mark.slow
def test_threads_are_checked_recorded_and_no_part_of_what_a_job_is(tmp_path):
    assert refusal("train", "threads=0") == "threads=0: must be auto, or a whole number, 1 or more"
    assert refusal("train", "threads=many").startswith("threads=many: must be auto")
    assert without_place({"seed": 0, "threads": 2}) == without_place({"seed": 0})
    run("src.train", "method=vanilla", *QUICK, "threads=2", f"hydra.run.dir={tmp_path}")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["threads"] == 2 and record["config"]["threads"] == 2
