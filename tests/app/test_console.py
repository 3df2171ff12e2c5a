"""The console script, in a folder that holds nothing of the project."""

import json

from commands import QUICK, run

from worstcase.app.console import COMMANDS


def test_it_lists_its_commands_and_refuses_others(tmp_path):
    usage = run("worstcase", "--help", at=tmp_path).stdout
    assert all(f"  {name} " in usage for name in COMMANDS)
    assert run("worstcase", at=tmp_path).stdout == usage
    assert run("worstcase", "trian", at=tmp_path, fails=True).stderr.startswith(
        "error: there is no command trian\n"
    )


def test_each_command_says_its_settings(tmp_path):
    for name in COMMANDS:
        assert f"worstcase {name}" in run("worstcase", name, "--help", at=tmp_path).stdout
    assert not list(tmp_path.iterdir())


def test_a_network_of_the_folder_is_trained_evaluated_and_reported(tmp_path):
    (tmp_path / "mine.py").write_text("from worstcase.models import LeNet as Net\n")
    run("worstcase", "train", "net=mine:Net", "method=vanilla", *QUICK, at=tmp_path)
    run("worstcase", "evaluate", "net=mine:Net", "attack=flwc", fails=True, at=tmp_path)
    (trained,) = tmp_path.glob("outputs/*/vanilla/*")
    assert json.loads((trained / "job.json").read_text())["command"].startswith("worstcase train net=mine:Net ")
    run("worstcase", "evaluate", f"run={trained}", "net=mine:Net", "attack=flwc", at=tmp_path)
    assert "2 finished, 0 failed" in run("worstcase", "status", at=tmp_path).stdout
    run("worstcase", "report", at=tmp_path)
    assert (tmp_path / "report" / "index.html").exists()
    assert "th_g in levels" in run("worstcase", "device", at=tmp_path).stdout
