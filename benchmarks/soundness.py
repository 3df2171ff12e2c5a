"""Tries to refute a certificate: many chips against the certified decisions of a trained network.

Of 10,000 chips, nine in ten are drawn, half of them uniform and half of them corners of the box; the others are
steps of PGD against one decision after another, those of the least margins first. Each chip answers all decisions
that are looked at, in the network's own float32. The command ends with 1 if one fails, or if a margin is below its
bound.

python benchmarks/soundness.py FOLDER --decisions 1000    # of a training; those with the least margins; 0: all
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from worstcase import Crossbar, load_run
from worstcase.certificate.linear import LinearBounds
from worstcase.chip.box import Perturbation

STEPS = 10  # of PGD against one decision, each a chip
BATCH = 500


@torch.no_grad()
def certified(crossbar: Crossbar, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and bounds of the proven decisions, the least margin first."""
    crossbar(batches[0][0])
    bounds = LinearBounds(crossbar)
    margins = torch.cat([bounds.margins(images, labels).amin(1) for images, labels in batches])
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = margins.argsort()[int((margins <= 0).sum()) :]
    return images[order], labels[order], margins[order]


def leads(logits: Tensor, labels: Tensor) -> Tensor:
    """By how much the label's output is above each other one; infinite for its own."""
    column = labels[:, None]
    return (logits.gather(1, column) - logits).scatter(1, column, torch.inf)


def chips(crossbar: Crossbar, images: Tensor, labels: Tensor, number: int) -> Iterator[Perturbation]:
    """Random ones, then those of whole sign steps against one decision's least margin."""
    box, generator = crossbar.box, torch.Generator().manual_seed(0)
    attacked = number // 10
    for i in range(number - attacked):
        yield box.sample(("uniform", "vertex")[i % 2], generator)
    for i in range(attacked):
        if i % STEPS == 0:
            one = slice(i // STEPS % len(labels), i // STEPS % len(labels) + 1)
            chip = box.zero()
        chip = {name: d.requires_grad_() for name, d in chip.items()}
        lead = leads(crossbar(images[one], chip), labels[one]).amin()
        slopes = torch.autograd.grad(lead, list(chip.values()))
        chip = box.at({name: -slope.sign() for name, slope in zip(chip, slopes, strict=True)})
        box.project_(chip)
        yield chip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of trainings")
    parser.add_argument("--thg", type=float, help="else the training's")
    parser.add_argument("--decisions", type=int, default=0, help="those with the least margins; 0: all")
    parser.add_argument("--chips", type=int, default=10_000)
    arguments = parser.parse_args()

    refuted = False
    for folder in arguments.runs:
        run = load_run(folder)
        run.datamodule.prepare_data()
        crossbar = run.crossbar
        crossbar.thg = arguments.thg or crossbar.thg
        images, labels, bounds = (
            t[: arguments.decisions or None] for t in certified(crossbar, list(run.datamodule.test_dataloader()))
        )
        if not len(labels):
            print(f"{folder}: no decision is proven at th_g {crossbar.thg:g}")
            continue
        least = torch.full_like(bounds, torch.inf)
        for chip in chips(crossbar, images, labels, arguments.chips):
            with torch.no_grad():
                answers = torch.cat([crossbar(x, chip) for x in images.split(BATCH)])
                least = torch.minimum(least, leads(answers, labels).amin(1))
        failed = int((least <= 0).sum())
        below = int((least < bounds - 1e-6 * bounds.abs()).sum())
        print(
            f"{folder.name}: {len(labels)} certified decisions, {arguments.chips} chips at th_g {crossbar.thg:g}: "
            f"{failed} failed, {below} margins were below their bound"
        )
        refuted |= failed + below > 0
    raise SystemExit(refuted)


if __name__ == "__main__":
    main()
