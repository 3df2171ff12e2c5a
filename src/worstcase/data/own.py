"""The user's own data, which a function of theirs returns."""

from __future__ import annotations

import hashlib
from pkgutil import resolve_name
from typing import Any

import lightning as L
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from worstcase.batches import inputs_and_labels, samples_in, taken, tensors_in
from worstcase.data.base import SampleDataModule

EXPECTED = (
    "must return a LightningDataModule, or data sets: (train, test) or (train, val, test); train may be None"
)
HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer")


class OwnDataModule(SampleDataModule):
    """Data that a function of the user returns.

    It returns a LightningDataModule, whose loaders are used as they are; or data sets with a length and numbered
    samples, each (inputs, label) or a dict with ``labels``.

    Args:
        of: the function as ``module:callable``, called without arguments. It is imported and run: no record may
            say it, see `worstcase.runs.dataset`.
        batch_size: of data sets; None: 128.
        options: see `SampleDataModule`; num_classes must be given.

    Raises:
        ValueError: there is no such function, or it returns something else.
    """

    def __init__(self, *, of: str, batch_size: int | None = None, **options: Any) -> None:
        super().__init__(**options, batch_size=128 if batch_size is None else batch_size)
        self.of, self._stages = of, set[str]()
        try:
            made = resolve_name(of)()
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"of={of}: must be module:callable that takes no arguments: {error}") from None
        self._module = made if isinstance(made, L.LightningDataModule) else None
        if self._module is not None:
            _check_module(of, made)
            if batch_size is not None or self.limit is not None:
                raise ValueError(
                    f"of={of}: returns a LightningDataModule, which makes its own batches: say neither "
                    "batch_size= nor limit="
                )
        elif not isinstance(made, tuple | list) or len(made) not in (2, 3):
            raise ValueError(f"of={of}: {EXPECTED}, not {type(made).__name__}")
        else:
            train, *val, test = made
            self._datasets = train, val[0] if val else None, test
            for data in self._datasets:
                if data is not None and not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
                    raise ValueError(
                        f"of={of}: {type(data).__name__} has no length or no numbered samples; {EXPECTED}"
                    )
            if test is None:
                raise ValueError(f"of={of}: there are no test data; {EXPECTED}")

    def prepare_data(self) -> None:
        if self._module is not None:
            self._module.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        if self._module is None:
            super().setup(stage)

    def load(self) -> tuple[Any, Any, Any]:
        return self._datasets

    def train_dataloader(self) -> DataLoader:
        return self._own("train_dataloader", "fit") if self._module else super().train_dataloader()

    def val_dataloader(self) -> DataLoader:
        return self._own("val_dataloader", "fit") if self._module else super().val_dataloader()

    def test_dataloader(self) -> DataLoader:
        return self._own("test_dataloader", "test") if self._module else super().test_dataloader()

    def _own(self, name: str, stage: str) -> DataLoader:
        """A loader of the user's module, set up for its stage once."""
        assert self._module is not None
        if getattr(type(self._module), name) is getattr(L.LightningDataModule, name):
            raise FileNotFoundError(f"of={self.of}: {type(self._module).__name__} has no {name}")
        if stage not in self._stages:
            self._module.trainer = self.trainer
            self._module.setup(stage)
            self._stages.add(stage)
        loader = getattr(self._module, name)()
        if isinstance(loader, list | tuple | dict):
            raise ValueError(f"of={self.of}: its {name} gives several loaders; give one")
        together = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        if together and name == "train_dataloader" and not isinstance(loader.sampler, DistributedSampler):
            raise ValueError(f"of={self.of}: several processes train, so its loader needs a DistributedSampler")
        return loader

    def digest(self) -> str:
        """A digest of the test data, whatever their order and batches: the code that makes them says little."""
        total = 0
        for batch in self.test_dataloader():
            inputs, labels = inputs_and_labels(batch)
            for index in range(samples_in(inputs)):
                one = [*tensors_in(taken(inputs, slice(index, index + 1))), labels[index]]
                content = b"".join(t.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in one)
                total += int.from_bytes(hashlib.sha256(content).digest())
        return f"{total % 2**48:012x}"


def _check_module(of: str, module: L.LightningDataModule) -> None:
    for name in HOOKS:
        if getattr(type(module), name) is not getattr(L.LightningDataModule, name):
            raise ValueError(
                f"of={of}: {type(module).__name__}.{name} changes batches, but attacks read the loaders "
                "alone; do it in the data set"
            )
