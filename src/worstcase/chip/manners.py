"""How a network behaves apart from its answers, as one look at its first inputs shows.

Attacks take many passes over the same inputs with many weights. They are right only if a pass leaves inputs and
network as they were, and if the arrays are what the network really multiplies with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worstcase.batches import Inputs, of_each, samples_in, taken, tensors_in
from worstcase.chip.arrays import Array, own_parameters
from worstcase.chip.products import INPUTS, Call, Origin, Products, Sources
from worstcase.chip.substitution import Change, call, changed, run
from worstcase.task import ends_in_a_sigmoid, leading, logits_of


@dataclass(frozen=True)
class Manners:
    """The result of the look at a network."""

    changes_inputs: bool
    """A layer works in place on them."""
    writes: tuple[str, ...]
    """Parameters and buffers that it may write to in eval mode: a chip must not leave them to the next."""
    depends_on_the_batch: bool
    """A sample's answer depends on the others, or may: it has none alone, or a pass moves a buffer."""
    saw_two: bool
    """There were two samples that differ; else it may depend on them all the same."""
    ends_in_a_sigmoid: bool
    """Its outputs are probabilities of one class each."""
    also_multiplied: tuple[str, ...]
    """Parameters, buffers and other tensors that meet an input in a matrix product, but are no arrays."""
    also_computed: tuple[str, ...]
    """Arrays that take part in more than products: what is computed from them meets data too."""
    rounds: bool
    """It casts weights for a product by an autocast of its own."""


def look(
    net: nn.Module, inputs: Inputs, own: Inputs, arrays: Mapping[str, Array], programmed: Mapping[str, Tensor]
) -> Manners:
    """Run a network in eval mode on a few inputs, and leave it as it was.

    Args:
        net: the network.
        inputs: a batch, as a crossbar lays it out.
        own: the same batch as it was given.
        arrays, programmed: see the crossbar.

    Raises:
        ValueError: an array is not what the network multiplies with, two passes give two answers, or plain PyTorch
            gives another.
    """
    fresh = None
    with suppress(Exception):  # what it keeps of a pass is kept in a copy, where one can be made
        unused = copy.deepcopy(net, {id(p): p for p in net.parameters()})
        (net, arrays), fresh = copy.deepcopy((net, dict(arrays))), unused
    with torch.inference_mode(False), torch.enable_grad():
        inputs = of_each(Tensor.clone, inputs)
        programmed = {name: t.detach().clone() for name, t in programmed.items()}
        two = two_that_differ(inputs)
        try:
            found = _look(net, taken(inputs, slice(2) if two is None else two), arrays, programmed, fresh)
        except ValueError:
            raise
        except Exception as error:  # a network may need them all
            if "Inference tensors" in str(error):
                raise ValueError(
                    f"{type(net).__name__} computes in inference mode within its forward, so that attacks have no "
                    "gradients: let it do so under torch.no_grad()"
                ) from None
            found = _look(net, inputs, arrays, programmed, fresh)
        if fresh is not None:
            _refuse_other_answers(net, own)
        return found


@torch.no_grad()
def _refuse_other_answers(net: nn.Module, inputs: Inputs) -> None:
    """Make sure that a network, which is a copy, answers as it does in plain PyTorch.

    The inputs are as they were given: rounding in another order may change what a network itself quantises.
    """
    tensors = {name: t for name, _, _, t in own_parameters(net)} | dict(net.named_buffers())
    try:
        ours = run(net, of_each(Tensor.clone, tensors), of_each(Tensor.clone, inputs))
        theirs = call(net, of_each(Tensor.clone, inputs))  # which may change the copy
        same = same_answers(ours, theirs, tensors)
    except Exception:  # whatever a foreign network raises
        return
    if not same:
        padded = any(isinstance(module, nn.TransformerEncoder) for module in net.modules())
        why = (
            "nn.TransformerEncoder gives zeros in padded places then; leave them out of what follows, or set its "
            "use_nested_tensor = False"
            if padded
            else "does it ask whether a weight is an nn.Parameter, or share a buffer?"
        )
        raise ValueError(f"{type(net).__name__} answers otherwise in plain PyTorch: {why}")


def _look(
    net: nn.Module,
    inputs: Inputs,
    arrays: Mapping[str, Array],
    programmed: Mapping[str, Tensor],
    fresh: nn.Module | None,
) -> Manners:
    leaves = {n: t.detach().clone().requires_grad_(t.is_floating_point()) for n, _, _, t in own_parameters(net)}
    buffers = {name: b.detach().clone() for name, b in net.named_buffers()}
    state, versions = {**leaves, **buffers}, {name: t._version for name, t in leaves.items()}
    data = of_each(lambda t: t.detach().requires_grad_(t.is_floating_point()), inputs)
    given = of_each(Tensor.clone, data)  # which may be changed in place
    checks = [(a.layer, a.place, _check(name, programmed[name])) for name, a in arrays.items() if a.place]
    kept = [(name, t) for name, _, _, t in own_parameters(net)]  # as in a list, where no chip's weights get to
    sources = Sources({**leaves, **buffers}, tensors_in(data), kept, programmed.values())
    used = _Used(arrays, leaves)
    device = next(iter(programmed.values())).device.type
    casts, rounds = torch.is_autocast_enabled(device), False

    def show(call: Call) -> None:
        nonlocal rounds
        rounds |= torch.is_autocast_enabled(device) and not casts
        for place, origin in sources.meet(call).items():
            used.see(origin, is_weight=call.operands[place].ndim > 1 and (call.name, place) not in INPUTS)

    with changed(checks), Products(show, sources.follow):
        first = run(net, state, given)
    written = [
        name
        for name, t in leaves.items()
        if state[name] is not t or t._version != versions[name] or name in sources.written
    ]
    used.refuse_written(written)
    sources.look_back(tensors_in(first))
    also_computed = used.changed(sources.changed)
    for origin in sources.unseen:
        used.see(origin, is_weight=any(name not in leaves or leaves[name].ndim > 1 for name in origin.names))
    moved = [name for name, b in net.named_buffers() if not torch.equal(state[name].to_dense(), b.to_dense())]
    tensors = {name: t for name, _, _, t in own_parameters(net)} | dict(net.named_buffers())

    @torch.no_grad()
    def again(inputs: Inputs) -> Any:
        state = {name: t.detach().clone() for name, t in tensors.items()}
        return run(net, state, of_each(Tensor.clone, inputs))

    before = _drawn_so_far(leaves.values())
    second = again(inputs)
    if not (same_answers(first, second, tensors) and torch.equal(before, _drawn_so_far(leaves.values()))):
        raise ValueError(
            f"{type(net).__name__} gives two answers to the same inputs in eval mode (dropout that is always on, "
            "numbers that it draws or keeps?): attacks need a network that repeats itself"
        )
    if fresh is not None and _keeps_what_it_computed(net, fresh, tensors, inputs):
        raise ValueError(
            f"{type(net).__name__} keeps in eval mode what it computed from its weights or from earlier inputs: "
            "let it compute that anew in each pass, since each chip has weights of its own"
        )
    in_place = any(not torch.equal(a, b) for a, b in zip(tensors_in(given), tensors_in(inputs), strict=True))
    return Manners(
        changes_inputs=in_place,
        writes=(*written, *dict.fromkeys([*_buffers_in_use(net), *moved])),
        depends_on_the_batch=bool(moved)
        or any(map(_uses_the_batch, net.modules()))
        or not _same_alone(again, inputs, second, list(tensors.values())),
        saw_two=two_that_differ(inputs) is not None,
        ends_in_a_sigmoid=ends_in_a_sigmoid(first),
        also_multiplied=tuple(used.others),
        also_computed=tuple(sorted(also_computed)),
        rounds=rounds,
    )


class _Used:
    """Check that what meets an input in a product is an array as it is programmed."""

    def __init__(self, arrays: Mapping[str, Array], leaves: Mapping[str, Tensor]) -> None:
        self.array_of = {
            source: name
            for name, array in arrays.items()
            for source in (*array.sources, *array.names)
            if array.place is None or (source in leaves and leaves[source].ndim > 1)  # and is no digital scale
        }
        self.names = {name: array.names for name, array in arrays.items()}
        self.computed = {name for name, array in arrays.items() if array.place}
        self.others: dict[str, None] = {}
        self.multiplied: set[str] = set()

    def see(self, origin: Origin, is_weight: bool) -> None:
        held = sorted({self.array_of[name] for name in origin.names if name in self.array_of})
        if held and (origin.is_data or not origin.is_itself or self.computed.intersection(held)):
            raise self._misplaced(held)
        self.multiplied.update(held)
        if is_weight and not held and not origin.is_data:
            self.others |= dict.fromkeys(sorted(origin.names))

    def changed(self, names: set[str]) -> set[str]:
        """Arrays of which something else meets data too.

        Raises:
            ValueError: one is in no product, such as a normalised weight in `(x * weight).sum(-1)`.
        """
        held = {self.array_of[name] for name in names if name in self.array_of}
        if misplaced := held - self.multiplied:
            raise self._misplaced(sorted(misplaced))
        return held

    def _misplaced(self, arrays: list[str]) -> ValueError:
        return ValueError(
            f"{self._named(arrays)}: the network multiplies with a tensor that it computes from it elsewhere, "
            "keeps outside its layers, as in a list, or looks numbers up in it, so its devices' deviations "
            "would be misplaced; leave it out (exclude=), or do not name it in arrays="
        )

    def _named(self, arrays: list[str]) -> str:
        """With all the names of a tensor."""
        return ", ".join(dict.fromkeys(name for array in arrays for name in (array, *self.names[array])))

    def refuse_written(self, written: list[str]) -> None:
        if held := sorted({self.array_of[name] for name in written if name in self.array_of}):
            raise ValueError(
                f"{', '.join(held)}: the network writes to it in eval mode; let it do so in training alone "
                "(if self.training), or leave the layer out (exclude=)"
            )


def _check(name: str, programmed: Tensor) -> Change:
    tolerance = 8 * torch.finfo(programmed.dtype).eps * float(programmed.abs().amax())

    def check(tensor: Tensor) -> Tensor:
        same = tensor.shape == programmed.shape and tensor.dtype == programmed.dtype
        if not (same and torch.allclose(tensor, programmed, rtol=0, atol=tolerance)):
            raise ValueError(f"{name}: the network multiplies with another tensor than its layer by itself")
        return programmed

    return check


def _buffers_in_use(net: nn.Module) -> Iterator[str]:
    for prefix, module in net.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):  # which only reads them in eval mode
            yield from (
                f"{prefix}.{name}".removeprefix(".") for name, b in module._buffers.items() if b is not None
            )


def _uses_the_batch(module: nn.Module) -> bool:
    """Also if the first batch has only one sample."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def two_that_differ(inputs: Inputs) -> Tensor | None:
    """The places of the first sample and of the first that is another, if there is one."""
    samples = samples_in(inputs)
    if samples < 2:
        return None
    of_samples = [t for t in tensors_in(inputs) if t.ndim and len(t) == samples]
    differ = torch.stack([(t != t[:1]).reshape(samples, -1).any(1) for t in of_samples]).any(0)
    return torch.stack([differ.new_zeros((), dtype=torch.long), differ.int().argmax()]) if differ.any() else None


def _same_alone(again: Callable[[Inputs], Any], inputs: Inputs, outputs: Any, tensors: list[Tensor]) -> bool:
    """Whether the first and the last sample of a batch get the same answers alone, up to rounding.

    Both, as a recurrent layer that takes samples for times goes from one to the other.
    """
    last = samples_in(inputs) - 1
    try:
        among = logits_of(outputs)
        for sample in (slice(0, 1), slice(last, last + 1)) if last else ():
            alone = logits_of(again(taken(inputs, sample)))
            rounding = _rounding([alone, *tensors])
            if alone.shape != among[sample].shape or not torch.allclose(
                alone, among[sample], rtol=rounding, atol=rounding * leading(among), equal_nan=True
            ):
                return False
    except Exception:  # whatever a network raises that needs them all
        return False
    return True


@torch.no_grad()
def _keeps_what_it_computed(
    used: nn.Module, fresh: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs
) -> bool:
    """Whether a network that ran answers otherwise with new weights than a copy that never did."""
    generator = torch.Generator().manual_seed(0)
    moved: dict[int, Tensor] = {}  # by the id of a parameter, which may have several names
    state: dict[str, Tensor] = {}
    try:
        for name, t in tensors.items():
            if isinstance(t, nn.Parameter) and t.is_floating_point() and id(t) not in moved:
                moved[id(t)] = t * (1 + 0.1 * torch.randn(t.shape, generator=generator).sign()).to(t)
            state[name] = moved.get(id(t), t)
        answers = [run(net, of_each(Tensor.clone, state), of_each(Tensor.clone, inputs)) for net in (fresh, used)]
    except Exception:  # they may be no weights that it takes
        return False
    first, second = answers
    return not same_answers(first, second, tensors)


def _rounding(tensors: list[Tensor]) -> float:
    """By how much of the leading outputs sums in another order may move the others."""
    device, dtypes = tensors[0].device.type, {t.dtype for t in tensors if t.is_floating_point()}
    if device == "cuda":
        dtypes.add(torch.half)  # TF32 has as many digits
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.bfloat16)
    return max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5


def _drawn_so_far(tensors: Iterable[Tensor]) -> Tensor:
    """The state of the generators that a network on this device draws from."""
    devices = {t.device for t in tensors if t.is_cuda}
    return torch.cat([torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)])


def same_answers(first: Any, second: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a network with these tensors gave the same twice.

    Up to rounding, as some kernels differ with and without gradients, or from run to run.
    """
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        if a.is_floating_point() and a.numel():
            rounding = _rounding([a, *tensors.values()])
            if not torch.allclose(a, b, rtol=rounding, atol=rounding * leading(b), equal_nan=True):
                return False
    return True
