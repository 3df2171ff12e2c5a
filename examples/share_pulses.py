"""Which weights should get the pulses? A table of ways to share them out, at equal pulses a weight.

python -m src.train
python examples/share_pulses.py outputs/lenet-mnist5k/universal_at/FOLDER 5
"""

import sys

import torch

from worstcase import load_run
from worstcase.attacks import Ensemble
from worstcase.verify import sensitivities as by
from worstcase.verify.allocation import WIDEST, allocated
from worstcase.verify.cost import Programming

WAYS = {
    "the same th_g everywhere": by.the_same,
    "at random": by.at_random,
    "first and last array tighter": by.first_and_last,
    "by magnitude": by.by_magnitude,
    "SWIM: second derivative x squared weight": by.by_second_derivative,
    "gradient, one th_g an array": lambda *of: by.of_each_array(by.by_gradient(*of)),
    "gradient, each weight its own": by.by_gradient,
}


def main(folder: str, pulses: float, seed: int = 1) -> None:
    run = load_run(folder)
    run.datamodule.prepare_data()
    train = list(run.datamodule.val_dataloader())  # what pulses are shared out by never sees the test set
    test = list(run.datamodule.test_dataloader())
    programming, crossbar = Programming(), run.crossbar
    crossbar.thg = widest = WIDEST / programming.sigmas_of_full_scale
    print("| pulses shared out | pulses a weight | lowest found |\n|---|---|---|")
    for name, way in WAYS.items():
        bounds = allocated(way(crossbar, train), pulses, programming)
        spent = programming.pulses(torch.cat([one.flatten() for one in bounds.values()])).mean().item()
        box = crossbar.box.restricted_to({key: (t / widest).clamp(0, 1) for key, t in bounds.items()})
        found = Ensemble()(crossbar, test, box=box, seed=seed, progress=False)
        print(f"| {name} | {spent:.2f} | {found.accuracy:.2%} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], float(sys.argv[2]))
