"""What the ensemble finds, and in what time, where it follows gradients in bfloat16 instead of float32.

    OMP_NUM_THREADS=1 python -m benchmarks.search_dtype RUN [--images 1000] [--seeds 0 1 2] [--thg 0.01]

RUN is the folder of a training. The two take turns; seconds are the processor's, so that others on the machine do
not count.
"""

import argparse
import time
from pathlib import Path

import torch

from worstcase import load_run
from worstcase.attacks import Ensemble


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--thg", type=float, help="the run's")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    if arguments.thg is not None:
        run.crossbar.thg = arguments.thg
    batches, left = [], arguments.images
    for images, labels in run.datamodule.test_dataloader():
        batches.append((images[:left], labels[:left]))
        left -= len(labels)
        if left <= 0:
            break
    print(f"{run.record.model}, th_g {run.crossbar.thg:g}, {torch.get_num_threads()} threads")
    for seed in arguments.seeds:
        for dtype in (None, "bfloat16"):
            started = time.process_time()
            found = Ensemble()(run.crossbar, batches, seed=seed, search_dtype=dtype, progress=False)
            took = time.process_time() - started
            print(
                f"seed {seed} {dtype or 'float32':8} {found.accuracy:.2%} {took:6.1f} s, {found.passes:.0f} passes"
            )


if __name__ == "__main__":
    main()
