"""A network on compute-in-memory hardware: programmed weights, their box, the perturbed forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.func import functional_call

from worstcase.chip.box import Box, Perturbation
from worstcase.chip.float64 import in_float64
from worstcase.chip.quantisation import OutputQuantiser, check_bits, quantise

FULL_SCALES = ("layer_max", "unit")

# The parameters that a crossbar array holds, by the kind of layer. Everything else (biases, batch norm,
# embeddings, recurrent cells) is digital and exact.
_ARRAYS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.modules.conv._ConvNd: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
_BIASES = ("bias", "in_proj_bias")


class Crossbar(nn.Module):
    """A network whose conv and linear weights are programmed into non-volatile memory devices.

    Write-verify leaves each weight W somewhere in [W - bound, W + bound] (Eq. 4 of the paper); `box` holds all
    these deviations. The network is used as it is; its parameters, buffers and training mode are never written to.

    Args:
        net: any network of one input; batch norm, shared and frozen weights and other layers are fine.
        thg: th_g, the weight perturbation bound in units of the full scale; 0 or more, at most 1 for
            ``layer_max``. It can be set later.
        full_scale: what th_g is relative to: ``layer_max``, the largest absolute weight of each layer
            (the authors' convention), or ``unit``, 1 (an absolute bound in weight units).
        layers: names of the layers to program, as shell patterns (``"*"``, ``"features.*"``); the others
            stay exact.
        exclude: patterns of layers to take out again.
        weight_bits: quantises weights and biases of the programmed layers to N bits and a sign, see
            `worstcase.chip.quantisation`; a perturbation comes on top. None: as they are.
        activation_bits: the same for the outputs of the programmed layers; the ranges follow the data in
            training mode, are fixed in eval mode, and come from `calibrate` if it was not trained so.

    Raises:
        ValueError: th_g or bits out of range, an unknown full scale, a pattern that fits no layer, or a
            network with no weight to perturb.

    Example:
        >>> crossbar = Crossbar(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), thg=0.03)
        >>> chip = crossbar.box.sample("vertex")
        >>> crossbar.box.contains(chip), crossbar(torch.ones(5, 1, 2, 2), chip).shape
        (True, torch.Size([5, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        thg: float,
        *,
        full_scale: str = "layer_max",
        layers: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        weight_bits: int | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        check_bits("weight_bits", weight_bits)
        check_bits("activation_bits", activation_bits)
        if full_scale not in FULL_SCALES:
            raise ValueError(f"full_scale={full_scale!r}: must be one of {', '.join(FULL_SCALES)}")
        self.net = net
        self.full_scale = full_scale
        self.thg = thg
        chosen = _programmed_layers(net, layers, exclude)
        self._names = _array_names(chosen)
        self._channels_last: bool | None = None  # None: not tried yet
        self._bias_names = [
            f"{layer}.{name}".removeprefix(".")
            for layer, module in chosen.items()
            for name in _BIASES
            if module._parameters.get(name) is not None
        ]
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.outputs = OutputQuantiser(list(chosen.values()), activation_bits) if activation_bits else None

    @property
    def thg(self) -> float:
        """The weight perturbation bound th_g in units of the full scale."""
        return self._thg

    @thg.setter
    def thg(self, thg: float) -> None:
        limit = 1.0 if self.full_scale == "layer_max" else math.inf
        if not (0 <= thg <= limit and math.isfinite(thg)):
            allowed = "0 <= thg <= 1 (a fraction of the full scale)" if limit == 1 else "finite, 0 or more"
            raise ValueError(f"thg={thg}: must be {allowed}")
        self._thg = float(thg)

    def arrays(self) -> dict[str, nn.Parameter]:
        """The network's own weight of each array, not quantised, by parameter name."""
        return {name: self.net.get_parameter(name) for name in self._names}

    def programmed(self) -> dict[str, Tensor]:
        """What the devices are told to hold: each array's weight or its quantised value, by parameter name.

        Its gradient with respect to the network's own weight is straight through.
        """
        return self._quantised(self._names)

    @contextmanager
    def bounded_by(self, thg: float) -> Iterator[None]:
        """Within the block th_g is another."""
        before = self.thg
        self.thg = thg
        try:
            yield
        finally:
            self.thg = before

    def full_scales(self) -> dict[str, Tensor]:
        """The full scale of each array in weight units: a detached float64 scalar by name.

        It is where the weight is; on the CPU where that device has no float64.
        """
        if self.full_scale == "unit":
            return {name: in_float64(w.new_ones(())) for name, w in self._detached().items()}
        return {name: in_float64(w.abs().amax()) for name, w in self._detached().items()}

    @property
    def box(self) -> Box:
        """All deviations that write-verify lets pass, for the weights and th_g as they are now.

        From -th_g to th_g times the full scale of each array. It takes a look at all weights: ask once, and keep
        it while the weights stay.

        Example:
            >>> layer = nn.Linear(2, 1, bias=False)
            >>> _ = nn.init.constant_(layer.weight, -2.0)
            >>> crossbar = Crossbar(layer, thg=0.25)
            >>> crossbar.box.low["weight"].item(), crossbar.box.high["weight"].item()
            (-0.5, 0.5)
            >>> deviation = {"weight": torch.tensor([[0.25, -0.75]])}
            >>> crossbar.box.contains(deviation), crossbar.box.outside(deviation)
            (False, 1)
            >>> crossbar.box.relative(crossbar.box.project(deviation))
            {'weight': tensor([[ 0.5000, -1.0000]])}
        """
        weights = {name: weight.detach() for name, weight in self.arrays().items()}
        return Box.symmetric(self.thg, self.full_scales(), weights)

    def bound(self) -> dict[str, Tensor]:
        """The largest deviation of each weight, half the width of the box: see `Box.half_width`."""
        return self.box.half_width

    def forward(self, x: Tensor, perturbation: Perturbation | None = None) -> Tensor:
        """The network's output at the programmed weights plus a perturbation.

        Args:
            x: a batch of inputs, as the network takes it.
            perturbation: a deviation of every array by name, in weight units and of the weight's shape; the
                output is differentiable in it. None: as programmed.

        Raises:
            KeyError: the perturbation's names are not those of the arrays.
            RuntimeError: outputs are quantised, but their ranges are not known yet.
        """
        return self.compute(x, self.weights(perturbation))

    def weights(self, perturbation: Perturbation | None = None) -> dict[str, Tensor]:
        """What one chip computes with, by parameter name: the arrays as perturbed, and quantised biases.

        Args:
            perturbation: see `forward`, as are the errors.
        """
        weights = self.programmed()
        if perturbation is not None:
            if perturbation.keys() != weights.keys():
                raise KeyError(f"perturbation of {sorted(perturbation)}, but the arrays are {sorted(weights)}")
            weights = {name: _deviate(weight, perturbation[name]) for name, weight in weights.items()}
        if self.weight_bits:
            weights |= self._quantised(self._bias_names)
        return weights

    def compute(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The output of the chip of those `weights`: `forward` in two steps, where one chip sees many batches.

        Images are laid out as by `laid_out`.
        """
        x = self.laid_out(x)
        with self.outputs.attached() if self.outputs else nullcontext():
            return functional_call(self.net, dict(weights), (x,))

    def laid_out(self, x: Tensor) -> Tensor:
        """Images in the order in memory that the network computes fastest in; as they are if they are so already.

        On a CPU that is channels_last, where the network can compute so: it takes 0.55 to 0.85 of the time.
        """
        if x.ndim != 4 or x.device.type != "cpu":
            return x
        if self._channels_last is None:
            self._channels_last = self._takes_channels_last(x)
        if not self._channels_last:
            return x.contiguous()
        # contiguous() would leave images of one channel as they are
        return x if x.stride(1) == 1 else x.clone(memory_format=torch.channels_last)

    @torch.no_grad()
    def _takes_channels_last(self, x: Tensor) -> bool:
        if any(_corrupts_memory(module) for module in self.net.modules()):
            return False
        with evaluating(self.net):
            try:
                self.net(x[:2].clone(memory_format=torch.channels_last))
            except RuntimeError:  # such as of x.view(len(x), -1)
                return False
        return True

    @torch.no_grad()
    def calibrate(self, loader: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the ranges of quantised outputs anew from data, batches (inputs, labels), in eval mode."""
        if self.outputs is None:
            return
        self.outputs.ranges.fill_(torch.nan)
        with evaluating(self):
            self.outputs.train()
            for images, _ in loader:
                self(images.to(self.outputs.ranges.device))
            self.outputs.eval()

    def max_relative_perturbation(self, perturbation: Perturbation) -> float:
        """The largest absolute deviation in units of its full scale, computed in float64."""
        scales = self.full_scales()
        largest = 0.0
        for name, deviation in perturbation.items():
            d = deviation.detach().abs().amax().item()
            largest = max(largest, d / scales[name].item() if d else 0.0)
        return largest

    def _quantised(self, names: Sequence[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {name: self.net.get_parameter(name) for name in names}
        if self.weight_bits is None:
            return tensors
        return {name: quantise(t, t.detach().abs().amax(), self.weight_bits) for name, t in tensors.items()}

    def _detached(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.programmed().items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a block in eval mode, then give each submodule the mode back that it had."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _corrupts_memory(module: nn.Module) -> bool:
    """A convolution whose gradient oneDNN writes past its workspace in channels_last (its issue 6035)."""
    return (
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and set(module.stride) != {1}
        and module.in_channels // module.groups < 16
    )


def _deviate(weight: Tensor, deviation: Tensor) -> Tensor:
    """W + d, added in at least float32 before it is cast to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + deviation.to(wide)).to(weight.dtype)


def _programmed_layers(net: nn.Module, layers: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    """The conv, linear and attention layers that the patterns choose, by name."""
    kinds: tuple[type[nn.Module], ...] = tuple(_ARRAYS)
    found = {name: module for name, module in net.named_modules() if isinstance(module, kinds)}
    for pattern in (*layers, *exclude):
        if found and not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"no conv or linear layer is named {pattern!r}; there are {', '.join(found)}")
    chosen = {
        name: module
        for name, module in found.items()
        if any(fnmatchcase(name, pattern) for pattern in layers)
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    }
    if not chosen:
        raise ValueError(
            f"{type(net).__name__} has no weight to perturb: no conv or linear layer"
            + (" is left by the choice of layers" if found else " in it")
        )
    return chosen


def _array_names(layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """Parameter names of the arrays; a tensor that several layers share is one array under its first name."""
    names: dict[int, str] = {}
    for layer, module in layers.items():
        parameters = next(names for kind, names in _ARRAYS.items() if isinstance(module, kind))
        for parameter in parameters:
            if parameter not in module._parameters:
                raise ValueError(
                    f"layer {layer!r} computes its {parameter} from other tensors (weight norm, pruning?); "
                    "make it a plain parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
                )
            weight = module._parameters[parameter]
            if weight is not None and weight.numel():
                names.setdefault(id(weight), f"{layer}.{parameter}".removeprefix("."))
    return tuple(names.values())
