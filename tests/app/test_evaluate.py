"""What `python -m src.evaluate` finds and explains, in processes of its own."""

import json
import shutil

import pytest
import torch
from commands import files, refusal, run, without_times
from hydra import compose
from safetensors.torch import load_file

from worstcase import load_run
from worstcase.app import naming
from worstcase.attacks.passes import accuracy
from worstcase.models import LeNet


def record(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="session")
def evaluated(trained, made_once):
    """Of the trained network: the default attack over three th_g, with a held-out half; shared as that is."""

    def evaluate(folder):
        words = ["thg=[0.02,0,0.01]", "attack.budget=150", "heldout=true", "dataset.limit=100"]
        done = run("src.evaluate", f"run={trained}", *words, f"hydra.run.dir={folder / 'evaluation'}")
        (folder / "shown").write_text(done.stdout)

    folder = made_once("evaluated", evaluate)
    return folder / "evaluation", (folder / "shown").read_text()


def test_a_list_of_th_g_is_the_same_job_in_any_order(trained, hydra):
    said = {"thg=[0.01,0.03]", "thg=[0.03,0.01]", "thg=[0.01,0.01,0.03]"}
    jobs = [compose("evaluate", [f"run={trained}", thg], return_hydra_config=True) for thg in said]
    assert len({job.hydra.run.dir for job in jobs}) == 1
    assert naming.completed(jobs[0])["thg"] == [0.01, 0.03]


def test_without_a_mapping_it_is_that_of_the_run(trained, hydra):
    cfg = compose("evaluate", [f"run={trained}", "~mapping"], return_hydra_config=True)
    assert naming.completed(cfg)["mapping"] == record(trained)["config"]["mapping"]


def test_the_ensemble_is_the_default_and_goes_up_through_a_list_of_th_g(evaluated):
    content = record(evaluated[0])
    attacks = content["attacks"]
    assert [found["attack"] for found in attacks] == ["ensemble"] * 3
    assert [found["thg"] for found in attacks] == [0, 0.01, 0.02]
    accuracies = [found["accuracy"] for found in attacks]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] == content["clean_accuracy"]
    assert content["attacked_accuracy"] == accuracies[-1] and content["thg"] == 0.02
    assert all(found["members"] for found in attacks[1:]) and all(found["feasible"] for found in attacks)


def test_each_saved_chip_has_the_accuracy_that_the_record_says(trained, evaluated):
    folder, _ = evaluated
    content, run_ = record(folder), load_run(trained)
    run_.datamodule.limit = 100
    loader = run_.datamodule.test_dataloader()
    assert len({found["perturbation"] for found in content["attacks"]}) == 3
    for found in content["attacks"]:
        perturbation = load_file(folder / found["perturbation"])
        run_.crossbar.thg = found["thg"]
        assert run_.crossbar.box.contains(perturbation)
        assert accuracy(run_.crossbar, loader, perturbation) == pytest.approx(found["accuracy"], abs=1e-9)


def test_the_held_out_half_is_reported_beside_the_attacked_one(evaluated):
    folder, shown = evaluated
    for found in record(folder)["attacks"]:
        assert 0 <= found["attacked_half_accuracy"] <= 1 and 0 <= found["heldout_accuracy"] <= 1
    assert "attacked half, held-out half" in shown and "lowest found (ensemble) at th_g 0" in shown


def test_the_worst_chip_is_explained_in_numbers_and_figures(evaluated):
    folder, _ = evaluated
    assert record(folder)["diagnosis"]
    names = {path.stem for path in folder.glob("*.png")}
    assert {"accuracy_over_thg", "confusion", "confidence", "perturbation", "layers"} <= names


def test_shares_of_monte_carlo_are_merged_into_what_one_run_over_all_finds(mine, tmp_path):
    sample = [f"run={mine}", "attack=monte_carlo", "dataset.limit=100", "thg=[0.01,0.0512345678]"]
    run("src.evaluate", "-m", *sample, "attack.instances=2", "attack.first=0,2")
    before = files(mine)
    run("src.evaluate", *sample, "attack.instances=4", "merge=true", before=(draw_nothing,))
    assert before.items() <= files(mine).items()
    run("src.evaluate", *sample, "attack.instances=4", f"hydra.run.dir={tmp_path / 'whole'}")
    whole = record(tmp_path / "whole")
    folders = [path.parent for path in mine.glob("evaluations/*/results.json")]
    (folder,) = (folder for folder in folders if record(folder)["config"]["merge"])
    merged = record(folder)
    assert len(folders) == 3 and len(merged["attacks"]) == 2
    assert without_times(merged)["attacks"] == without_times(whole)["attacks"]
    assert merged["flags"] == whole["flags"] and merged["diagnosis"] == whole["diagnosis"]
    for thg in ("0.01", "0.0512345678"):
        place = f"thg{thg}/instances.csv"
        assert without_seconds(folder / place) == without_seconds(tmp_path / "whole" / place)


def draw_nothing() -> None:
    from worstcase.attacks import monte_carlo

    monte_carlo._correct = None


def without_seconds(file):
    return [line.rpartition(",")[0] for line in file.open()]


def test_what_is_missing_or_of_other_data_is_not_merged(mine):
    sample = ["src.evaluate", f"run={mine}", "attack=monte_carlo"]
    run(*sample, "attack.instances=2", "dataset.limit=50")
    merge = [*sample, "attack.instances=4", "attack.first=1", "merge=true"]
    done = run(*merge, "dataset.limit=50", fails=True)
    assert "has chips 2 to 4 (attack.first=2 attack.instances=3)" in done.stderr
    done = run(*merge, "dataset.limit=60", fails=True)
    assert "has chips 1 to 4 (attack.first=1 attack.instances=4)" in done.stderr
    run(*sample, "attack.instances=3", "attack.first=2", "dataset.limit=50")
    run(*merge, "dataset.limit=50", before=(draw_nothing,))


def test_only_monte_carlo_is_merged():
    own = ["net=worstcase.models:LeNet", "checkpoint=none.pt", "dataset=mnist5k"]
    assert "merge=true: needs attack=monte_carlo" in refusal("evaluate", *own, "attack=flwc", "merge=true")


def test_other_weights_in_the_same_file_are_another_evaluation(trained, tmp_path):
    file = tmp_path / "weights.ckpt"
    shutil.copy(trained / "checkpoints" / "best.ckpt", file)
    evaluation = [
        "src.evaluate",
        f"run={trained}",
        f"checkpoint={file}",
        "attack=flwc",
        "attack.steps=1",
        f"hydra.run.dir={tmp_path / 'out'}",
    ]
    run(*evaluation)
    assert "finished already" in run(*evaluation).stderr
    torch.save(LeNet().state_dict(), file)
    assert "holds the record of another configuration" in run(*evaluation, fails=True).stderr


def test_a_single_attack_that_an_earlier_evaluation_beat_is_flagged(mine):
    run("src.evaluate", f"run={mine}", "attack=lwc", "thg=0.025", "dataset.limit=100")
    done = run("src.evaluate", f"run={mine}", "attack=pgd", "attack.steps=1", "thg=0.025", "dataset.limit=100")
    assert "but lwc found" in " ".join(done.stdout.split())
    (folder,) = (mine / "evaluations").glob("pgd-thg0.025-*")
    assert any("at th_g 0.025 in another run" in flag for flag in record(folder)["flags"])
