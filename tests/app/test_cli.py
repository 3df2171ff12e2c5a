"""The commands as a user gives them, in processes of their own."""

import json
import os
import shutil
import signal

import pytest
import torch
from commands import QUICK, files, run, running, shorten_ensembles, without_times
from safetensors.torch import save_file

from worstcase.app import naming
from worstcase.app.folders import check_folder
from worstcase.app.state import Begun

ONE_EPOCH = "trainer.max_epochs=1"


def record(folder):
    return json.loads((folder / "results.json").read_text())


# ---- what a run leaves


def test_training_leaves_a_record_a_checkpoint_a_perturbation_and_a_log(trained):
    content = record(trained)
    assert content["kind"] == "train" and content["source_run"] is None
    assert (content["method"], content["model"], content["dataset"]) == ("vanilla", "lenet", "mnist5k")
    assert (content["samples"], content["reference"], content["epochs"]) == (1000, "test", 3)
    assert content["command"].startswith("python -m src.train method=vanilla")
    assert content["config"]["trainer"]["max_epochs"] == 3
    assert content["clean_accuracy"] > 0.7 and content["attacked_accuracy"] < content["clean_accuracy"]
    assert content["parameters_perturbed"] == 105_918
    assert [found["attack"] for found in content["attacks"]] == ["lwc", "ensemble"]
    for found in content["attacks"]:
        assert found["feasible"] and 0 < found["max_relative_perturbation"] <= found["thg"] == 0.03
    assert {path.name for path in trained.iterdir()} == {
        "checkpoints",
        *(found["perturbation"] for found in content["attacks"]),
        "hparams.yaml",
        "job.json",
        "metrics.csv",
        "perturbation.safetensors",
        "results.json",
        "run.log",
        "worst_chip.safetensors",
    }
    assert "val/attacked_accuracy" in (trained / "metrics.csv").read_text()
    assert "epoch 3 of 3" in (trained / "run.log").read_text()


def test_summary_names_the_attack_and_the_unit(trained):
    shown = run("src.train", "method=vanilla", "trainer.max_epochs=3", f"hydra.run.dir={trained}").stdout
    for part in (
        "clean accuracy",
        "lowest found (lwc)",
        "lowest found (ensemble)",
        "proven lowest (interval)",
        "of each layer's largest weight",
        "seconds",
        "results.json",
    ):
        assert part in shown


def test_a_finished_run_is_not_run_again_and_not_touched(trained):
    before = files(trained)
    done = run("src.train", "method=vanilla", "trainer.max_epochs=3", f"hydra.run.dir={trained}")
    assert "finished already" in done.stderr
    assert files(trained) == before


def test_a_record_of_another_configuration_is_never_overwritten(trained):
    before = files(trained)
    done = run("src.train", "method=vanilla", "seed=1", f"hydra.run.dir={trained}", fails=True)
    assert "holds the record of another configuration; choose another hydra.run.dir" in done.stderr
    done = run("src.evaluate", f"run={trained}", f"hydra.run.dir={trained}", fails=True)
    assert "holds the record of another configuration" in done.stderr
    assert files(trained) == before


def test_same_seed_same_record_other_seed_another(tmp_path):
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        words = [ONE_EPOCH, "dataset.limit=100", f"seed={seed}", f"hydra.run.dir={tmp_path / name}"]
        run("src.train", *words, before=(shorten_ensembles,))
    first, again, other = (without_times(record(tmp_path / name)) for name in ("first", "again", "other"))
    assert first == again
    assert first["attacks"] != other["attacks"]


def test_training_ends_after_the_time_that_is_said(tmp_path):
    words = ["method=vanilla", "dataset.limit=500", "trainer.max_epochs=200", "+trainer.max_time=00:00:00:01"]
    run("src.train", *words, f"hydra.run.dir={tmp_path}", before=(shorten_ensembles,))
    assert 0 < record(tmp_path)["epochs"] < 200


def test_two_processes_leave_one_record_of_the_whole_test_set(tmp_path):
    processes = ["trainer.accelerator=cpu", "trainer.devices=2", "+trainer.strategy=ddp"]
    settings = ["method=universal_at", "attack@val_attack=flwc", *QUICK]
    done = run("src.train", *settings, *processes, f"hydra.run.dir={tmp_path}")
    assert record(tmp_path)["samples"] == 200
    assert done.stderr.count("epoch 1 of 1") == 1 and done.stdout.count("results.json") == 1


def test_an_unfinished_run_is_neither_overwritten_nor_gone_on_with_by_another_configuration(trained, tmp_path):
    unfinished = shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("results.json"))
    before = files(unfinished / "checkpoints")
    done = run("src.train", "method=vanilla", ONE_EPOCH, "seed=1", f"hydra.run.dir={unfinished}", fails=True)
    assert f"{unfinished} holds an unfinished run of another configuration" in done.stderr
    assert files(unfinished / "checkpoints") == before


def test_evaluations_of_an_earlier_training_do_not_become_those_of_the_next(tmp_path):
    settings = {"trainer": {}, "seed": 0}
    Begun("python -m src.train", settings).save(tmp_path)
    (tmp_path / "evaluations" / "lwc").mkdir(parents=True)
    (tmp_path / "checkpoints").mkdir()
    check_folder(tmp_path, settings, "run")
    (tmp_path / "evaluations" / "lwc" / "results.json").touch()
    with pytest.raises(ValueError, match=r"results\.json is of an earlier training; .*delete .*evaluations$"):
        check_folder(tmp_path, settings, "run")
    (tmp_path / "checkpoints" / "last.ckpt").touch()  # the same training goes on
    check_folder(tmp_path, settings, "run")
    with pytest.raises(ValueError, match="or delete run/checkpoints to train anew, and any run/evaluations"):
        check_folder(tmp_path, settings | {"seed": 1}, "run")


# ---- evaluate


def test_evaluation_takes_from_the_run_what_is_not_said_and_lies_in_its_folder(mine):
    run("src.evaluate", f"run={mine}", "attack=flwc", "thg=0.01")
    (folder,) = (mine / "evaluations").glob("flwc-thg0.01-*")
    content, source = record(folder), record(mine)
    assert content["kind"] == "evaluate" and (folder / content["source_run"]).resolve() == mine.resolve()
    assert content["thg"] == 0.01 and content["seed"] == source["seed"]
    assert content["clean_accuracy"] == pytest.approx(source["clean_accuracy"], abs=0.002)
    assert content["config"]["dataset"] == source["config"]["dataset"]
    assert [found["attack"] for found in content["attacks"]] == ["flwc"]
    before = files(folder)
    assert "finished already" in run("src.evaluate", f"run={mine}", "attack=flwc", "thg=0.01").stderr
    assert files(folder) == before


def test_evaluation_defaults_to_the_newest_training_run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "outputs" / "older")
    shutil.copytree(trained, tmp_path / "multirun" / "deep" / "newer")
    os.utime(tmp_path / "outputs" / "older" / "results.json", (1, 1))
    run("worstcase", "evaluate", "attack=flwc", "dataset.limit=50", at=tmp_path)
    assert list((tmp_path / "multirun" / "deep" / "newer" / "evaluations").glob("flwc-thg0.03-*/results.json"))
    shutil.rmtree(tmp_path / "outputs")
    shutil.rmtree(tmp_path / "multirun")
    done = run("worstcase", "evaluate", at=tmp_path, fails=True)
    assert "no finished training run below outputs/ or multirun/; make one with: worstcase train" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", ["run=here", "+run=here", "++run=here", "++net=mine:Net"])
def test_a_run_or_network_that_is_named_is_not_the_newest(said):
    assert naming.naming_the_newest_run(["attack=flwc", said]) == ["attack=flwc", said]


def test_the_users_own_network_and_weights_need_no_run(trained, tmp_path):
    checkpoint = trained / "checkpoints" / "best.ckpt"
    own = ["net=worstcase.models:LeNet", f"checkpoint={checkpoint}", "dataset=mnist5k", "attack=flwc"]
    run("src.evaluate", *own, f"hydra.run.dir={tmp_path / 'own'}")
    content, source = record(tmp_path / "own"), record(trained)
    assert content["clean_accuracy"] == pytest.approx(source["clean_accuracy"], abs=0.002)
    assert (content["model"], content["method"], content["source_run"]) == ("worstcase.models:LeNet", None, None)
    assert content["thg"] == 0.03
    done = run("src.evaluate", "net=worstcase.models:LeNet", fails=True)
    assert "needs checkpoint=FILE and dataset=NAME, or run=FOLDER" in done.stderr


def test_the_users_own_network_is_trained_and_evaluated_only_when_named(tmp_path):
    """The record of a run must not make a later command import code that its user did not name."""
    folder = tmp_path / "run"
    run("src.train", "net=worstcase.models:LeNet", "method=vanilla", *QUICK, f"hydra.run.dir={folder}")
    assert record(folder)["model"] == "worstcase.models:LeNet"
    done = run("src.evaluate", f"run={folder}", "attack=flwc", fails=True)
    assert f"if you trust it, pass run={os.path.relpath(folder)} net=worstcase.models:LeNet" in done.stderr
    assert not (folder / "evaluations").exists()
    run("src.evaluate", f"run={folder}", "attack=flwc", "net=worstcase.models:LeNet")


def test_quantised_training_and_evaluation(tmp_path, trained):
    bits = ["model.weight_bits=4", "model.activation_bits=4"]
    done = run("src.train", "method=atrice", *QUICK, *bits, "search_dtype=bfloat16", f"hydra.run.dir={tmp_path}")
    slow = torch.backends.cpu.get_cpu_capability() == "AVX2" and not torch.cuda.is_available()
    assert slow == ("search_dtype=bfloat16: this processor has no AVX-512" in done.stderr)
    content = record(tmp_path)
    assert (content["weight_bits"], content["activation_bits"]) == (4, 4)
    assert content["attacks"][0]["parameters"]["search_dtype"] == "bfloat16"
    run("src.evaluate", f"run={tmp_path}", "attack=flwc")
    (evaluation,) = (tmp_path / "evaluations").glob("flwc-*")
    assert record(evaluation)["clean_accuracy"] == content["clean_accuracy"]  # the ranges came along

    run("src.evaluate", f"run={trained}", "attack=flwc", *bits, f"hydra.run.dir={tmp_path / 'float'}")
    content = record(tmp_path / "float")  # trained in float: ranges are calibrated on training data
    assert (content["weight_bits"], content["activation_bits"]) == (4, 4)
    assert abs(content["clean_accuracy"] - record(trained)["clean_accuracy"]) < 0.1


def test_training_starts_from_given_weights(trained, tmp_path):
    given = f"init_from={trained / 'checkpoints' / 'best.ckpt'}"
    few = [words for words in QUICK if "limit" not in words]
    run("src.train", "method=vanilla", *few, given, f"hydra.run.dir={tmp_path}")
    assert record(tmp_path)["clean_accuracy"] > record(trained)["clean_accuracy"] - 0.03


def test_other_weights_in_the_same_file_make_another_job(trained, tmp_path):
    given = tmp_path / "given.safetensors"
    state = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    weights = {name.removeprefix("crossbar.net."): tensor for name, tensor in state.items() if "net." in name}
    folder = f"hydra.run.dir={tmp_path}/${{run_folder:}}"
    for scale in (1.0, 0.0):
        save_file({name: scale * tensor for name, tensor in weights.items()}, given)
        run("src.train", "method=vanilla", *QUICK, f"init_from={given}", folder)
    moved = shutil.move(given, tmp_path / "moved.safetensors")
    assert "finished already" in run("src.train", "method=vanilla", *QUICK, f"init_from={moved}", folder).stderr
    assert len(list(tmp_path.rglob("results.json"))) == 2


def test_evaluation_on_another_limit(trained, tmp_path):
    run("src.evaluate", f"run={trained}", "attack=flwc", "dataset.limit=50", f"hydra.run.dir={tmp_path}")
    assert record(tmp_path)["samples"] == 50


def test_an_evaluation_looks_for_another_data_set_where_it_is_told(mine):
    done = run("src.evaluate", f"run={mine}", "attack=flwc", "dataset=mnist", fails=True)
    assert "no MNIST below no-such-folder" in done.stderr  # of WORSTCASE_DATA


def to_be_told() -> None:
    """Where the tests run in background, Ctrl-C is ignored; and attacks say more often how far they are."""
    from worstcase import progress

    signal.signal(signal.SIGINT, signal.default_int_handler)
    progress.SECONDS_BETWEEN_LINES = 0.1


@pytest.mark.parametrize("signalled", [signal.SIGTERM, signal.SIGINT])
def test_a_run_ends_when_it_is_told_to(tmp_path, signalled):
    """SIGTERM, as kill and cluster schedulers send it, or Ctrl-C, in an attack that would take an hour."""
    attack = ["attack@test_attack=lwc", "test_attack.epochs=100000", "dataset.limit=100"]
    long = ["src.train", "method=vanilla", ONE_EPOCH, *attack, f"hydra.run.dir={tmp_path}"]
    with running(*long, before=(to_be_told,)) as process:
        process.wait_until(lambda: "lwc: pass" in process.err.read_text())
        os.kill(process.process.pid, signalled)
        # Lightning ends a training that Ctrl-C stops with 1
        assert process.wait() == (1 if signalled == signal.SIGINT else 128 + signalled)
        assert "Traceback" not in process.err.read_text()
    assert not (tmp_path / "results.json").exists()
    begun = run("src.status", f"folders=[{tmp_path}]").stdout
    assert f"begun     {tmp_path}\n          python -m src.train method=vanilla" in begun


def test_a_sweep_goes_on_after_a_job_that_fails(tmp_path):
    done = run(
        "src.train",
        "-m",
        "method=vanilla",
        *QUICK,
        "dataset.limit=500",
        "model.optimizer.lr=1e30,1e-3",
        f"hydra.sweep.dir={tmp_path}",
        fails=True,
    )
    assert "error: the loss is nan at step" in done.stderr
    jobs = [json.loads(path.read_text()) for path in tmp_path.rglob("job.json")]
    (failed,) = (job for job in jobs if job["error"])
    assert "model.optimizer.lr=1e+30" in failed["command"]
    (finished,) = tmp_path.rglob("results.json")
    assert record(finished.parent)["config"]["model"]["optimizer"]["lr"] == 1e-3


# ---- bad input


def test_help_tells_the_groups_and_how_to_use_them():
    shown = run("src.train", "--help").stdout
    for part in (
        "python -m src.train method=atrice thg=0.02",
        "method: adversarial, atrice, awp, ibp, mtl_ibp, pgd_at, random_errors, sam, trice, "
        "universal_at, universal_at_deep, va, vanilla",
        "attack: ensemble, ensemble_short, flwc, lwc, lwc_margin, lwc_short, monte_carlo, pgd",
        "thg:",
    ):
        assert part in shown


def test_th_g_presets_set_thg_and_the_command_line_wins():
    assert "thg: 0.02" in run("src.train", "--cfg", "job", "th_g=rram").stdout
    assert "thg: 0.05" in run("src.train", "--cfg", "job", "th_g=rram", "thg=0.05").stdout


def test_wandb_is_offline_unless_logged_in_and_groups_a_sweep(tmp_path):
    run("src.train", "-m", "logger=wandb", "method=vanilla", *QUICK, f"hydra.sweep.dir={tmp_path}")
    (record,) = tmp_path.rglob("results.json")
    (offline,) = record.parent.glob("wandb/offline-run-*/*.wandb")
    for shown in (str(tmp_path), record.parent.name, "vanilla", "val/accuracy"):
        assert shown.encode() in offline.read_bytes()
    assert (record.parent / "metrics.csv").exists()
