"""Train each method in two processes: python two_processes.py FOLDER; each leaves what it saw and learnt."""

import sys
from pathlib import Path

import lightning as L
import torch
from test_methods import METHODS, QUIET
from torch import nn
from torch.utils.data import DataLoader

from worstcase import Crossbar
from worstcase.methods.base import sum_over_processes


class Witness(L.Callback):
    """Keeps the first batch and the last perturbation of each training step that gives the loss."""

    def __init__(self, file):
        self.file, self.seen = file, {"images": None, "perturbations": []}

    def on_train_start(self, trainer, module):
        module.crossbar.register_forward_pre_hook(self.before)

    def before(self, crossbar, inputs):
        images, *perturbation = inputs
        if self.seen["images"] is None:
            self.seen["images"] = images
        self.last = [d for d in perturbation if d is not None]

    def on_after_backward(self, trainer, module):
        for d in (d for perturbation in self.last for d in perturbation.values()):
            self.seen["perturbations"].append(d.detach().clone())

    def on_train_end(self, trainer, module):
        tensor = torch.arange(6.0).view(2, 3)
        if trainer.global_rank:
            tensor = tensor.T.contiguous().T
        torch.save(sum_over_processes(tensor), self.file.parent / f"sum-{trainer.global_rank}.pt")
        parameters = dict(module.named_parameters()) | {"pool": getattr(module, "pool", torch.zeros(1))}
        torch.save(self.seen | {"parameters": parameters}, f"{self.file}-{trainer.global_rank}.pt")


def main(folder):
    torch.manual_seed(0)
    batches = [(torch.randn(8, 1, 6, 6), torch.randint(3, (8,))) for _ in range(6)]
    for name, method in METHODS.items():
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        module = method(Crossbar(net, 0.1), num_classes=3)
        trainer = L.Trainer(
            max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[Witness(folder / name)], **QUIET
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
