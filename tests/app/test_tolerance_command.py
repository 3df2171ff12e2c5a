"""python -m src.tolerance, end to end."""

import json

import pytest
import torch
from commands import run
from safetensors.torch import load_file

from worstcase import attacks, load_run, load_tolerances
from worstcase.attacks.passes import accuracy
from worstcase.evaluation.record import Record
from worstcase.verify.cost import Programming


def asked(trained, *words, at, **options):
    return run("worstcase", "tolerance", f"run={trained}", "attack=flwc", *words, at=at, **options)


def test_the_answer_is_left_shown_and_right(trained, tmp_path):
    mine = load_run(trained)
    mine.datamodule.limit = 150
    reference = list(mine.datamodule.test_dataloader())
    clean = accuracy(mine.crossbar, reference)
    target = round(0.8 * clean, 2)
    words = [f"accuracy={target}", "programming.pulse_seconds=1e-6", "precision=0.2", "dataset.limit=150"]
    words += ["attack.steps=5", "hydra.run.dir=answer"]
    shown = asked(trained, *words, at=tmp_path).stdout
    answer = json.loads((tmp_path / "answer" / "tolerance.json").read_text())
    assert answer["accuracy"] == target and answer["clean_accuracy"] == pytest.approx(clean)
    assert answer["proven_thg"] is not None and answer["proven_thg"] < answer["broken_thg"]
    pulses = answer["pulses_per_weight"]
    assert pulses["broken"] > 2 and f"{pulses['broken']:.3g}" in shown and "breaks it" in shown
    assert answer["seconds"]["broken"] == pytest.approx(pulses["broken"] * answer["weights"] * 1e-6)
    assert (tmp_path / "answer" / "tolerance.png").stat().st_size > 10_000

    weights = mine.crossbar.programmed()
    assert set(answer["tolerances"]) == set(weights)
    assert 2 < pulses["weight"] <= 1.2 * pulses["array"] and f"{pulses['weight']:.3g}" in shown
    by_weight = load_tolerances(tmp_path / "answer" / "tolerances_by_weight.safetensors")
    for by, thg in (("array", answer["tolerances"]), ("weight", by_weight)):
        said = answer["shared"][by]
        spent = torch.cat([torch.as_tensor(thg[n]).double().expand(w.shape).flatten() for n, w in weights.items()])
        mean = Programming().pulses(spent).mean().item()
        assert mean == pytest.approx(pulses[by], rel=1e-3) and pulses[by] < pulses["broken"]
        mine.crossbar.thg = thg
        found = attacks.FLWC(steps=5)(mine.crossbar, reference, seed=said["seed"], progress=False)
        assert found.accuracy == pytest.approx(said["accuracy"]) and said["accuracy"] >= target

    record = Record.load(tmp_path / "answer")
    assert record.kind == "evaluate" and "tolerance" in record.command
    assert [found.thg for found in record.attacks] == [point["thg"] for point in answer["attacked"]]
    for found in record.attacks:
        chip = load_file(tmp_path / "answer" / found.perturbation)
        mine.crossbar.thg = found.thg
        assert mine.crossbar.box.contains(chip)
        assert accuracy(mine.crossbar, reference, chip) == pytest.approx(found.accuracy)
    chip = load_file(tmp_path / "answer" / "broken_chip.safetensors")
    mine.crossbar.thg = answer["broken_thg"]
    assert mine.crossbar.box.contains(chip) and answer["broken_accuracy"] < target
    assert accuracy(mine.crossbar, reference, chip) == pytest.approx(answer["broken_accuracy"])
    assert f"has {answer['broken_accuracy']:.2%}: broken_chip.safetensors" in shown

    again = asked(trained, *words, at=tmp_path)
    assert "finished already" in again.stderr and "breaks it" in again.stdout


def no_figure():
    from worstcase.verify import figure

    def fails(answer):
        raise ValueError("no figure")

    figure.answer_over_thg = fails


@pytest.mark.parametrize("before", [(), (no_figure,)], ids=["drawn", "not drawn"])
def test_pulses_that_are_not_counted_and_figures_that_fail_cost_no_answer(before, trained, tmp_path):
    words = ["accuracy=0.5", "th_g=rram_milo2021", "mapping.pair=true", "where=false", "dataset.limit=50"]
    words += ["precision=0.3", "attack.steps=2"]
    asked(trained, *words, "certificate=null", "hydra.run.dir=answer", at=tmp_path, before=before or None)
    answer = json.loads((tmp_path / "answer" / "tolerance.json").read_text())
    assert answer["broken_thg"] and not any(answer["pulses_per_weight"].values())
    assert [found.thg for found in Record.load(tmp_path / "answer").attacks]
    assert (tmp_path / "answer" / "tolerance.png").is_file() == (not before)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "accuracy is needed: accuracy=VALUE"),
        (["accuracy=95"], "accuracy=95.0: must be above 0 and at most 1"),
        (["accuracy=0.999"], "the network as programmed has"),
        (["accuracy=0.5", "thg=[0.01,0.02]"], "thg: must be one, where the search begins"),
        (["accuracy=0.5", "programming.sigma=0"], "programming.sigma=0: must be above 0"),
        (["accuracy=0.5", "programming.weight_bits=3"], "programming.weight_bits=3 is not divisible by"),
        (["accuracy=0.5", "heldout=true"], "heldout"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_line(words, said, trained, tmp_path):
    failed = asked(trained, *words, "hydra.run.dir=answer", at=tmp_path, fails=True)
    assert said in failed.stderr and "Traceback" not in failed.stderr
