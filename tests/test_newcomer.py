"""As CONTRIBUTING promises, an attack or a method is one file, one conf file, and one line of a test table."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from commands import QUICK, REPOSITORY, run

ATTACK = '''
"""The vertex of the box that a single gradient points to."""

from worstcase.attacks.base import Attack
from worstcase.attacks.search import Search
from worstcase.objectives import cross_entropy


class OneStep(Attack):
    """One sign step from the weights as programmed to the edge of the box."""

    name = "one_step"

    def search(self, run: Search) -> None:
        chip = run.box.zero()
        uphill = run.full_gradient(cross_entropy, chip)
        run.box.step_(chip, uphill, run.box.half_width)
        run.score(chip)

    def expected_passes(self, run: Search) -> float:
        return 4
'''
METHOD = '''
"""Training on chips that are drawn uniformly from the box."""

import torch.nn.functional as F
from torch import Tensor

from worstcase.methods.base import Method


class Uniform(Method):
    """The loss of a chip that is drawn uniformly from the box."""

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        chip = self.crossbar.box.sample("uniform", self.draws)
        return F.cross_entropy(self.crossbar(images, chip), labels)
'''


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository with a new attack and a new method."""
    copy = tmp_path_factory.mktemp("copy") / "repository"
    copy.mkdir()
    for part in ("src", "conf", "tests"):
        shutil.copytree(REPOSITORY / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    for group, name, thing, code, table in (
        ("attacks", "one_step", "OneStep", ATTACK, 'ATTACKS = {\n    "one_step": OneStep(),'),
        ("methods", "uniform", "Uniform", METHOD, 'METHODS = {\n    "uniform": Uniform,'),
    ):
        home = f"worstcase.{group}.{name}"
        (copy / "src" / "worstcase" / group / f"{name}.py").write_text(code)
        (copy / "conf" / group.removesuffix("s") / f"{name}.yaml").write_text(f"_target_: {home}.{thing}\n")
        test = copy / "tests" / group / f"test_{group}.py"
        lines = test.read_text()
        assert lines.count(table.split("\n")[0]) == 1
        lines = lines.replace(table.split("\n")[0], table).replace(
            "\nimport pytest\n", f"\nimport pytest\nfrom {home} import {thing}\n", 1
        )
        test.write_text(lines)
    return copy


def of_the_copy(source: Path) -> None:
    sys.path.insert(0, str(source))
    for name in [name for name in sys.modules if name.partition(".")[0] == "worstcase"]:
        del sys.modules[name]  # the process has imported the original


def test_a_new_attack_and_method_pass_the_shared_tests(changed):
    files = ["tests/attacks/test_attacks.py", "tests/methods/test_methods.py"]
    words = ["pytest", "-n0", "-q", "-p", "no:cacheprovider", *files, "-k", "one_step or uniform"]
    shown = run(*words, at=changed, before=(of_the_copy, changed / "src")).stdout
    assert int(shown.strip().splitlines()[-1].split()[0]) > 20


def test_the_commands_know_a_new_attack_and_method(changed, tmp_path):
    words = [
        "method=uniform",
        *QUICK[:2],
        "suite=single",
        "attack@test_attack=one_step",
        f"hydra.run.dir={tmp_path}",
    ]
    run("src.train", *words, at=changed, before=(of_the_copy, changed / "src"))
    record = json.loads((tmp_path / "results.json").read_text())
    assert (record["method"], record["attacks"][0]["attack"]) == ("uniform", "one_step")
