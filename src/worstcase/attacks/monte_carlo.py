"""Monte Carlo: the accuracy of sampled chips, and what they say of all chips."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worstcase.attacks.base import Attack
from worstcase.attacks.distribution import describe
from worstcase.attacks.instances import Instance, InstanceFile
from worstcase.attacks.search import Search
from worstcase.batches import Loader, split
from worstcase.checks import choice, number, whole
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.crossbar import Crossbar
from worstcase.chip.float64 import has_float64
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.noise import (
    Draw,
    each_device,
    gaussian,
    per_device,
    programmed,
    right_censored_gaussian,
    verified,
)
from worstcase.chip.tolerance import has_weights, plain
from worstcase.chip.write_verify import PULSES, device_weights
from worstcase.digests import add_tensors
from worstcase.task import decisions, right_answers

# each with the settings that it has
SAMPLERS: dict[str, set[str]] = {
    "gaussian": {"sigma"},
    "truncated_gaussian": {"sigma"},
    "right_censored_gaussian": {"sigma", "threshold"},
    "uniform": set(),
    "vertex": set(),
    "programmed": {"sigma", "max_pulses"},
}
UNVERIFIED = {"gaussian": gaussian, "right_censored_gaussian": right_censored_gaussian}  # may leave the box

TOGETHER = 16  # instances that share a pass over the data, and are saved together
MEMORY = 256 * 2**20  # bytes of their perturbations, at most
BATCH = 100  # images at a time, about: what they leave of each layer stays in a CPU's cache


class MonteCarlo(Attack):
    """The accuracies of independently sampled chips: their distribution, and the lowest.

    `AttackResult.distribution` is what `worstcase.attacks.distribution.describe` gives, with ``instances``,
    ``first``, ``sampler``, how many were ``infeasible``, and the ``accuracies`` in the order of the instances. It
    covers every instance; the perturbation reported is the worst feasible one.

    Instance i depends on the seed and i alone, is drawn by the CPU's generator, and is the same in any range of
    instances; on a GPU it may differ by rounding. In a folder, ``instances.csv`` keeps what is done: a run that
    was killed goes on from there. Several machines share the work by taking a range each: append their files to
    one, and run the whole range there, as ``python -m src.evaluate merge=true`` does.

    Args:
        instances: how many chips, 1 or more.
        first: index of the first one, 0 or more.
        sampler: ``truncated_gaussian``, ``uniform`` and ``vertex`` are those of `Box.sample`; ``gaussian``,
            ``right_censored_gaussian`` and ``programmed``, functions of `worstcase.chip.noise`, may leave the box.
        sigma: standard deviation of the Gaussian that a sampler is made of, before write-verify, in units of the
            full scale; None: that of the devices' `Tolerance`, or half its width (th_g, of a number). It is the
            same to both sides, also where the ends of the box differ.
        threshold: of ``right_censored_gaussian``, in units of sigma; None: 1.
        max_pulses: of ``programmed``, at most 10^15; None: 1,000.
        weight_bits: M, to draw each device of a weight (Eq. 4); a device's deviations are in units of its own full
            scale. None: the weight is one device, or has those of the crossbar's `DeviceMapping`.
        device_bits: K, with weight_bits.

    The devices of a `DeviceMapping` are drawn each in its own box, and so is one whose tolerance is a table or
    another number than other weights'. They are sound: no weight is stuck.

    Cost: 1 pass an instance, and 2 for the clean accuracy and for the worst instance; passes and seconds of the
    instances that a resumed run found are counted too. On the CPU instances run in batches of about 100, which is
    faster; an image that two classes tie for may fall to the other.
    Memory: the perturbations and the weights of 16 instances, 256 MiB of each at most (but one instance).

    Example:
        >>> crossbar = Crossbar(torch.nn.Linear(2, 2, bias=False), thg=0.5)
        >>> with torch.no_grad():
        ...     _ = crossbar.net.weight.copy_(torch.eye(2))
        >>> found = MonteCarlo(instances=50)(crossbar, [(torch.tensor([[1.0, 0.9]]), torch.tensor([0]))])
        >>> found.accuracy, 0.3 < found.distribution["mean"] < 0.8
        (0.0, True)
    """

    name = "monte_carlo"

    def __init__(
        self,
        *,
        instances: int = 1000,
        first: int = 0,
        sampler: str = "truncated_gaussian",
        sigma: float | None = None,
        threshold: float | None = None,
        max_pulses: int | None = None,
        weight_bits: int | None = None,
        device_bits: int | None = None,
    ) -> None:
        whole("instances", instances)
        whole("first", first, least=0)
        choice("sampler", sampler, SAMPLERS)
        for key, value in {"sigma": sigma, "threshold": threshold, "max_pulses": max_pulses}.items():
            if value is not None and key not in SAMPLERS[sampler]:
                raise ValueError(f"{key}={value}: {sampler} has no {key}")
        if sigma is not None:
            number("sigma", sigma, above=0, also="in units of the full scale")
        if threshold is not None:
            number("threshold", threshold, also="in units of sigma")
        if max_pulses is not None:
            whole("max_pulses", max_pulses, most=PULSES)
        if (weight_bits is None) != (device_bits is None):
            raise ValueError("weight_bits and device_bits are given together or not at all")
        if weight_bits is not None and device_bits is not None:
            device_weights(weight_bits, device_bits)  # raises where they do not fit
        self.instances, self.first = instances, first
        self.sampler, self.sigma, self.threshold, self.max_pulses = sampler, sigma, threshold, max_pulses
        self.weight_bits, self.device_bits = weight_bits, device_bits

    def expected_passes(self, run: Search) -> float:
        return 2 + self.instances

    def check_fit(self, crossbar: Crossbar, loader: Loader) -> None:
        told = crossbar.depends_on_conductance or crossbar.mapping != DeviceMapping()
        if self.device_bits is not None and told:
            raise ValueError(
                f"device_bits={self.device_bits}: only where thg are numbers; here the mapping tells the devices"
            )

    def can_move(self, run: Search) -> bool:
        return super().can_move(run) or (self.sampler in UNVERIFIED and self.sigma is not None)

    def search(self, run: Search) -> None:
        wanted = range(self.first, self.first + self.instances)
        file = InstanceFile(run.folder, self._identity(run)) if run.folder else None
        done = file.instances if file else {}
        self.check_fit(run.crossbar, run.loader)
        draw = self._draw(run)
        pending = [index for index in wanted if index not in done]
        found = [done[index] for index in wanted if index in done]
        run.count(len(found) * run.samples, earlier=sum(one.seconds for one in found))
        size = sum(d.numel() * d.element_size() for d in run.worst.values())
        together = max(1, min(TOGETHER, MEMORY // size))
        for begin in range(0, len(pending), together):
            indices, started = pending[begin : begin + together], time.perf_counter()
            chips = [draw(index) for index in indices]
            feasible = [run.box.contains(chip) for chip in chips]
            correct = _correct(run, chips)
            share = (time.perf_counter() - started) / len(indices)
            new = {i: Instance(c, f, share) for i, c, f in zip(indices, correct, feasible, strict=True)}
            if file:
                file.append(new)
            done |= new
            run.count(len(new) * run.samples, lowest=min(correct) / run.decisions)
        sampled = {index: done[index] for index in wanted}
        inside = [index for index, one in sampled.items() if one.feasible]
        if inside:
            worst = min(inside, key=lambda index: sampled[index].correct)
            run.score(draw(worst), instance=worst)
        accuracies = [one.correct / run.decisions for one in sampled.values()]
        run.distribution = {
            "instances": self.instances,
            "first": self.first,
            "sampler": self.sampler,
            **describe(accuracies),
            "infeasible": len(sampled) - len(inside),
            "accuracies": accuracies,
        }

    def _draw(self, run: Search) -> Callable[[int], dict[str, Tensor]]:
        """A function that gives the chip of an index."""
        box = run.box if has_float64(run.device) else run.box.to("cpu")
        sample = self._sample(run.crossbar, box)
        weight_bits, device_bits = self.weight_bits, self.device_bits
        if run.crossbar.has_one_bound and run.crossbar.mapping.device_bits is not None:
            weight_bits, device_bits = run.crossbar.weight_bits, run.crossbar.mapping.device_bits
        if weight_bits is not None and device_bits is not None:
            sample = per_device(sample, weight_bits, device_bits)
        seed = zlib.crc32(str(run.seed).encode())

        def draw(index: int) -> dict[str, Tensor]:
            # consecutive seeds, since the CPU's generator takes no more than 32 bits of one
            generator = torch.Generator().manual_seed((seed + index) % 2**32)
            return {name: d.to(run.device) for name, d in sample(generator).items()}

        return draw

    def _sample(self, crossbar: Crossbar, box: Box) -> Draw:
        """The function that draws a chip, but for the bits of devices that have one bound."""
        of_its_own = {
            key: value for key in ("threshold", "max_pulses") if (value := getattr(self, key)) is not None
        }
        if not crossbar.has_one_bound:
            return each_device(crossbar, box, partial(self._sample_one, of_its_own=of_its_own), self.sigma)
        thg = crossbar.thg
        sigma = thg if self.sigma is None else self.sigma
        if self.sampler in UNVERIFIED:
            if thg:
                scale = {name: half * (sigma / thg) for name, half in box.half_width.items()}
            else:
                scale = {name: full * sigma for name, full in crossbar.full_scales().items()}
            return partial(UNVERIFIED[self.sampler], box.weights, scale, **of_its_own)
        if self.sampler == "programmed":
            return partial(programmed, box, tolerance=thg / sigma, **of_its_own)
        if self.sampler == "truncated_gaussian":
            return partial(box.sample, "truncated_gaussian", tolerance=thg / sigma)
        return partial(box.sample, self.sampler)

    def _sample_one(self, box: Box, sigma: Perturbation, of_its_own: dict[str, Any]) -> Draw:
        """The same for one device of each weight, with a box and a sigma of its own."""
        if self.sampler in UNVERIFIED:
            return partial(UNVERIFIED[self.sampler], box.weights, sigma, **of_its_own)
        if self.sampler == "truncated_gaussian":
            return partial(verified, box, sigma)
        if self.sampler == "programmed":
            return partial(verified, box, sigma, **{"max_pulses": 1000, **of_its_own})
        return partial(box.sample, self.sampler)

    def _identity(self, run: Search) -> dict[str, Any]:
        """A digest of all that decides an instance's right answers."""
        settings = {key: value for key, value in self.parameters().items() if key not in ("instances", "first")}
        return {
            "seed": run.seed,
            **settings,
            "thg": run.crossbar.thg,
            "full_scale": run.crossbar.full_scale,
            **(
                {}
                if run.crossbar.has_one_bound and run.crossbar.mapping == DeviceMapping()
                else {"each_device": repr((_said(run.crossbar), run.crossbar.mapping))}
            ),
            "network": _digest(run.crossbar, run.box),
            "samples": run.samples,
            "data": run.data_digest,
            "clean_percent": round(100 * run.history[0]["accuracy"]),  # other machines may differ by a tie
        }


def _said(crossbar: Crossbar) -> Any:
    tolerance = crossbar.tolerance
    return plain(tolerance) if has_weights(tolerance) else tolerance


@torch.no_grad()  # and no inference mode, in which a network could compute no gradient of its own
def _correct(run: Search, chips: Sequence[Perturbation]) -> list[int]:
    """The right answers of some chips over the reference set, in one pass over the data."""
    weights = [run.crossbar.weights(chip) for chip in chips]
    correct = torch.zeros(len(chips), dtype=torch.long, device=run.device)
    in_pieces = run.device.type == "cpu" and not run.crossbar.depends_on_the_batch
    for inputs, labels in run.batches():
        for x, y in split(inputs, labels, max(1, round(len(labels) / BATCH)) if in_pieces else 1):
            x = run.crossbar.laid_out(x)  # once for all chips
            for i, chip in enumerate(weights):
                correct[i] += right_answers(*decisions(run.crossbar.compute(x, chip), y)).sum()
    return [int(c) for c in correct]


def _digest(crossbar: Crossbar, box: Box) -> str:
    """A digest of all parameters and buffers, the box, and the bits of the arrays."""
    digest = hashlib.sha256(str((crossbar.weight_bits, crossbar.activation_bits)).encode())
    for tensors in (crossbar.state_dict(), box.low, box.high):
        add_tensors(digest, tensors)
    return digest.hexdigest()
