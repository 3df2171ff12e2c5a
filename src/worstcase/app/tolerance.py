"""Find how tight write-verify has to be for an accuracy: python -m src.tolerance."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from worstcase.app import naming
from worstcase.app.doors import CONF
from worstcase.app.evaluate import described, flagged, training_images, under_test
from worstcase.app.job import run_job
from worstcase.app.pulses import programming
from worstcase.app.start import start
from worstcase.evaluation.record import Record, write_json
from worstcase.whole_file import write_whole

ANSWER = "tolerance.json"
BROKEN = "broken_chip.safetensors"
"""The deviations of the chip that breaks the accuracy, by array in weight units."""
BY_WEIGHT = "tolerances_by_weight.safetensors"

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=CONF, config_name="tolerance")
def _tolerance(cfg: DictConfig) -> float | None:
    value = run_job("tolerance", tolerance, cfg)
    answer = Path(HydraConfig.get().runtime.output_dir, ANSWER)
    if answer.is_file():
        print_answer(json.loads(answer.read_text()))
    return value


def main() -> None:
    start(_tolerance, naming.naming_the_newest_run)


def tolerance(cfg: dict[str, Any], folder: Path) -> Record:
    """Search as the settings say, and leave the answer beside the record, perturbations and figures."""
    from safetensors.torch import save

    import worstcase
    from worstcase.evaluation.evaluation import Evaluation
    from worstcase.evaluation.flags import of_the_network, red_flags
    from worstcase.verify.figure import answer_over_thg

    subject = under_test(cfg)
    crossbar = subject.crossbar
    found = worstcase.tolerance(
        crossbar,
        subject.datamodule.test_dataloader(),
        cfg["accuracy"],
        attack=subject.attack,
        certificate=cfg["certificate"],
        programming=programming(cfg, crossbar),
        precision=cfg["precision"],
        where=cfg["where"],
        training=training_images(subject) if cfg["where"] else None,
        seed=cfg["seed"],
    )
    evaluation = Evaluation(
        crossbar,
        found.attacks,
        red_flags(found.attacks, None, None) + of_the_network(crossbar),
        diagnosis=None,
        certificates=found.certificates,
        not_certified=found.not_certified,
    )
    answer = found.plain()
    folder.mkdir(parents=True, exist_ok=True)
    if found.broken_chip is not None:
        broken = {name: d.cpu().contiguous() for name, d in found.broken_chip.items()}
        write_whole(folder / BROKEN, save(broken))
    if by_weight := found.shared.get("weight"):
        worstcase.save_tolerances(folder / BY_WEIGHT, by_weight.thg)
    write_json(folder / ANSWER, answer)
    try:
        answer_over_thg(answer).savefig(folder / "tolerance.png", dpi=150)
    except Exception:  # the answer and the record matter more
        log.exception("the figure could not be drawn")
    with crossbar.bounded_by(evaluation.thg):
        result = evaluation.record(**described("tolerance", cfg, folder, subject))
        evaluation.save(folder, flagged(result, cfg, folder, subject))
    return result


def print_answer(answer: dict[str, Any]) -> None:
    """Show an answer in plain types on standard output."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"to keep {answer['accuracy']:.2%} (as programmed {answer['clean_accuracy']:.2%})"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    costs = {"pulses a weight": "pulses_per_weight", "seconds": "seconds", "joules": "joules"}
    costs = {name: key for name, key in costs.items() if any(v is not None for v in answer[key].values())}
    for column in ("write-verify to", "th_g", *costs):
        table.add_column(column)
    for end, words in (("proven", "is proven to keep it"), ("broken", "breaks it: an attack found a chip")):
        thg = answer[f"{end}_thg"]
        cells = ["-" if (value := answer[key][end]) is None else f"{value:.3g}" for key in costs.values()]
        table.add_row(words, f"{thg:.3g}" if thg else "none", *cells)
    for by in answer["shared"]:
        cells = ["-" if (value := answer[key][by]) is None else f"{value:.3g}" for key in costs.values()]
        table.add_row(f"no attack breaks it: th_g of each {by}", "see below", *cells)
    Console().print(table)
    if (left := answer.get("broken_accuracy")) is not None:
        print(f"the chip that breaks it has {left:.2%}: {BROKEN}, in the same folder")
    if answer["tolerances"]:
        each = ", ".join(f"{name} {thg:.3g}" for name, thg in answer["tolerances"].items())
        print(f"th_g of each array: {each}")
    if "weight" in answer["shared"]:
        print(f"th_g of each weight: thg={BY_WEIGHT}, in the same folder")
    if not_shared := answer.get("not_shared"):
        print(f"pulses are not shared out: {not_shared}")
    if answer["not_certified"]:
        print(f"nothing is proven: {answer['not_certified']}")
