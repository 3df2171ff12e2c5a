"""A network on compute-in-memory hardware: programmed weights, their box, the perturbed forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from worstcase.batches import Inputs, Loader, inputs_and_labels, of_each
from worstcase.checks import choice
from worstcase.chip.arrays import (
    Coverage,
    biases,
    check_patterns,
    check_unchanged,
    coverage,
    find_arrays,
    programmed_layers,
    state_dict_of,
    used,
    weights_of_layers,
)
from worstcase.chip.box import Box, Perturbation
from worstcase.chip.deviation import deviate
from worstcase.chip.devices import Devices
from worstcase.chip.float64 import in_float64
from worstcase.chip.kinds import check_kind
from worstcase.chip.manners import Manners, look, two_that_differ
from worstcase.chip.mapping import DeviceMapping
from worstcase.chip.memory_layout import MemoryLayout
from worstcase.chip.modes import evaluating
from worstcase.chip.quantisation import OutputQuantiser, check_bits, quantise
from worstcase.chip.substitution import changed, run
from worstcase.chip.tolerance import Said


class Crossbar(nn.Module):
    """A network whose weights are programmed into non-volatile memory devices.

    Every weight that meets an input in a matrix product is an array: of linear, convolutional, bilinear, attention
    and recurrent layers, and what the user names. Write-verify leaves each weight W somewhere in
    [W - bound, W + bound] (Eq. 4 of the paper); `box` holds all these deviations. W is the tensor that the layer
    multiplies with, after any sign, norm, mask or quantisation that the layer itself applies to its parameter.

    The network is used as it is; its parameters, buffers and training mode are never written to. With its first
    batch it is looked at, in eval mode: whether it multiplies with its arrays, repeats itself, and answers as in
    plain PyTorch; once more with the first batch in which two samples differ, where they do not in that one.

    Args:
        net: any network; batch norm, shared and frozen weights and other layers are fine.
        thg: th_g, the weight perturbation bound in units of the full scale; 0 or more, at most 1 for
            ``layer_max``. Or a `Tolerance`, which depends on a device's conductance: the weight's absolute value
            in units of the full scale. Or numbers and tolerances by shell patterns of arrays' names, of which the
            first that fits counts: ``{"fc*": 0.01, "*": 0.03}``; a tensor there has a number for each weight,
            see `worstcase.load_tolerances`. It can be set later.
        full_scale: what th_g is relative to: ``layer_max``, the largest absolute weight of each layer
            (the authors' convention), or ``unit``, 1 (an absolute bound in weight units).
        mapping: the devices that hold a weight; None: one, and a digital sign.
        stuck: weights whose devices may be stuck, by array in tensors of its shape: where they would be then, in
            units of the full scale, -1 to 1, and NaN for sound ones. Their boxes reach as far.
        layers: names of the layers to program, as shell patterns (``"*"``, ``"features.*"``); the others
            stay exact.
        exclude: patterns of layers to take out again.
        arrays: patterns of further parameters to program, those that the network's own code multiplies with.
        weight_bits: quantises weights and biases of the programmed layers to N bits and a sign, see
            `worstcase.chip.quantisation`; a perturbation comes on top. None: as they are.
        activation_bits: the same for the outputs of the programmed layers; the ranges follow the data in
            training mode, are fixed in eval mode, and come from `calibrate` if it was not trained so.

    Raises:
        ValueError: th_g or bits out of range, an unknown full scale, a string in place of a list of patterns, a
            pattern that fits nothing, an array that no pattern of th_g fits, a tensor of another shape than the
            weight, a mapping that these bits or this full scale do not allow, a network with no weight to perturb,
            or a layer whose computed weight cannot be followed.

    Example:
        >>> crossbar = Crossbar(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), thg=0.03)
        >>> chip = crossbar.box.sample("vertex")
        >>> crossbar.box.contains(chip), crossbar(torch.ones(5, 1, 2, 2), chip).shape
        (True, torch.Size([5, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        thg: Said,
        *,
        full_scale: str = "layer_max",
        mapping: DeviceMapping | None = None,
        stuck: Mapping[str, Tensor] | None = None,
        layers: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        arrays: Sequence[str] = (),
        weight_bits: int | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        check_kind(net)
        check_bits("weight_bits", weight_bits)
        check_bits("activation_bits", activation_bits)
        check_patterns(layers=layers, exclude=exclude, arrays=arrays)
        choice("full_scale", full_scale, ("layer_max", "unit"))
        if not isinstance(mapping, DeviceMapping | None):
            raise ValueError(
                f"mapping={mapping!r}: must be a DeviceMapping, such as DeviceMapping(pair=True), or None"
            )
        self.net = net
        self.full_scale = full_scale
        self.weight_bits, self.activation_bits = weight_bits, activation_bits
        self.mapping, self.stuck = mapping or DeviceMapping(), dict(stuck or {})
        self.patterns = {"layers": list(layers), "exclude": list(exclude), "arrays": list(arrays)}
        chosen = programmed_layers(net, layers, exclude)
        self._arrays = find_arrays(net, chosen, arrays)
        if not self._arrays:
            raise ValueError(
                f"{type(net).__name__} has no weight to perturb: no layer has one, or none of them is chosen; "
                "arrays= names parameters that its own code multiplies with"
            )
        self.thg = thg
        in_devices = {name for array in self._arrays.values() for name in array.names}
        self._bias_names = [name for name in biases(chosen) if name not in in_devices]
        self._layout = MemoryLayout(net)
        self._manners: Manners | None = None
        self.outputs = OutputQuantiser(list(chosen.values()), activation_bits) if activation_bits else None

    @property
    def thg(self) -> float:
        """The largest deviation that any weight may have, in units of its full scale: th_g.

        What is set may be any tolerance of devices, as in the constructor.
        """
        return self._devices.largest

    @thg.setter
    def thg(self, thg: Said) -> None:
        self._devices = Devices.holding(
            self._arrays,
            thg,
            self.mapping,
            full_scale=self.full_scale,
            weight_bits=self.weight_bits,
            stuck=self.stuck,
        )
        if not self.has_one_bound:
            self._devices.check_shapes(self._detached())

    @property
    def tolerance(self) -> Said:
        """The tolerance of a device: a number, a `Tolerance`, or several by patterns."""
        return self._devices.said

    @property
    def depends_on_conductance(self) -> bool:
        """Whether a weight's value matters to how far it may deviate, beside its array's full scale."""
        return self._devices.depend_on_conductance

    @property
    def has_one_bound(self) -> bool:
        """Whether each weight deviates by th_g at most, up and down, whatever its value and its array."""
        return self._devices.have_one_bound

    def arrays(self) -> dict[str, nn.Parameter]:
        """The network's own parameter of each array that has one of the same name, as training moves it."""
        own = {name: array.layer._parameters.get(array.parameter) for name, array in self._arrays.items()}
        return {name: parameter for name, parameter in own.items() if parameter is not None}

    def programmed(self) -> dict[str, Tensor]:
        """The values that devices are told to hold: what each layer multiplies with, or its quantised value.

        By array, which is named as its parameter. Its gradient with respect to the network's own weight is what
        the layer makes it, and straight through quantisation.
        """
        return self._quantised(self._tensors_used())

    def coverage(self) -> Coverage:
        """The values held in devices, and those that are digital and exact, such as biases, norms and tables.

        Example:
            >>> Crossbar(nn.Linear(9, 1), thg=0.1).coverage()
            Coverage(programmed={'weight': 9}, digital={'bias': 1})
        """
        return coverage(self.net, self._arrays, {name: w.numel() for name, w in self._detached().items()})

    @property
    def also_multiplied(self) -> list[str]:
        """What met an input in a matrix product but is no array; none before the first batch.

        Parameters and buffers by name, other tensors by shape. Those of layers that are left out on purpose are
        not among them.
        """
        if self._manners is None:
            return []
        left_out = weights_of_layers(self.net)
        return [name for name in self._manners.also_multiplied if name not in left_out]

    @property
    def also_computed(self) -> list[str]:
        """Arrays that the network also computes with apart from products, such as a norm; none before a batch.

        There it takes what a chip holds, deviations included.
        """
        return [] if self._manners is None else list(self._manners.also_computed)

    @property
    def depends_on_the_batch(self) -> bool:
        """Whether an answer depends on the other samples of its batch; False before two samples differed."""
        return self._manners is not None and self._manners.depends_on_the_batch

    @property
    def rounds_weights(self) -> bool:
        """Whether the network casts weights by an autocast of its own; False before the first batch."""
        return self._manners is not None and self._manners.rounds

    @property
    def ends_in_a_sigmoid(self) -> bool:
        """Whether the network gives probabilities in place of logits; False before the first batch."""
        return self._manners is not None and self._manners.ends_in_a_sigmoid

    @property
    def can_be_scaled(self) -> bool:
        """Whether all tolerances can be scaled by one factor to another largest one."""
        return self.has_one_bound or (self.thg > 0 and not self.stuck)

    @contextmanager
    def bounded_by(self, thg: Said) -> Iterator[None]:
        """Within the block another tolerance holds.

        Args:
            thg: a number is the largest deviation, to which all tolerances are scaled by one factor; anything else
                takes their place.
        """
        before = self._devices
        if self.has_one_bound or not (isinstance(thg, Real) or (isinstance(thg, Tensor) and thg.ndim == 0)):
            self.thg = thg
        elif (number := float(thg)) != self.thg:
            self._devices = self._devices.scaled_to(number)
        try:
            yield
        finally:
            self._devices = before

    def full_scales(self) -> dict[str, Tensor]:
        """The full scale of each array in weight units: a detached float64 scalar by name.

        It is where the weight is; on the CPU where that device has no float64.
        """
        return self._full_scales_of(self._detached())

    @property
    def box(self) -> Box:
        """All deviations that write-verify lets pass, for the weights and th_g as they are now.

        From -th_g to th_g times the full scale of each array, or what the devices' tolerances come to. It takes a
        look at all weights: ask once, and keep it while the weights stay.

        Raises:
            ValueError: a tolerance depends on the conductance, and a weight is larger than the largest.

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
        weights = self._detached()
        return self._devices.box(weights, self._full_scales_of(weights))

    def sigma(self) -> dict[str, Tensor]:
        """The standard deviation of each weight's programming error, by array in weight units, in float64.

        Of a tolerance without one, it is half the width: th_g, where that is a number. Devices of a weight
        deviate independently. It broadcasts to the weight.
        """
        weights = self._detached()
        return self._devices.sigma(weights, self._full_scales_of(weights))

    def devices(self, sigma: float | None = None) -> list[tuple[Box, dict[str, Tensor]]]:
        """The box of each device of a weight, and the standard deviation before write-verify, as `sigma` gives it.

        Both are of what the device adds to the weight's deviation. `box` holds all sums, and more where a weight
        is 0, whose sign may be either, or may be stuck.

        Args:
            sigma: another standard deviation for all devices, in units of a device's own full scale.

        Example:
            >>> pair = Crossbar(nn.Linear(2, 1, bias=False), thg=0.25, mapping=DeviceMapping(pair=True))
            >>> [bool((box.reach["weight"] * 2 == pair.box.reach["weight"]).all()) for box, _ in pair.devices()]
            [True, True]
        """
        weights = self._detached()
        return self._devices.each(weights, self._full_scales_of(weights), sigma)

    def bound(self) -> dict[str, Tensor]:
        """Half the width of the box, the largest deviation of a weight where its ends do not differ."""
        return self.box.half_width

    def forward(self, inputs: Inputs, perturbation: Perturbation | None = None) -> Any:
        """The network's output at the programmed weights plus a perturbation.

        Args:
            inputs: a batch, as the network takes it: a tensor, a tuple of arguments, or a dict of them by name.
            perturbation: a deviation of every array by name, in weight units and of the weight's shape; the
                output is differentiable in it. None: as programmed.

        Raises:
            KeyError: the perturbation's names are not those of the arrays.
            ValueError: in the first batch, that the network does not multiply with its arrays as they are.
            RuntimeError: outputs are quantised, but their ranges are not known yet.
        """
        return self.compute(inputs, self.weights(perturbation))

    def weights(self, perturbation: Perturbation | None = None) -> dict[str, Tensor]:
        """The tensors of one chip, by parameter name: the perturbed arrays, and quantised biases.

        Of an array that its layer computes in each pass it is the deviation, which is added there.

        Args:
            perturbation: see `forward`.

        Raises:
            KeyError: its names are not those of the arrays.
        """
        if perturbation is not None and perturbation.keys() != self._arrays.keys():
            raise KeyError(f"perturbation of {sorted(perturbation)}, but the arrays are {sorted(self._arrays)}")
        given = perturbation or {}
        weights = self._quantised({name: used(a) for name, a in self._arrays.items() if a.place is None})
        weights = {name: deviate(w, given[name]) if given else w for name, w in weights.items()}
        weights |= {name: d for name, d in given.items() if self._arrays[name].place is not None}
        if self.weight_bits:
            weights |= self._quantised({name: self.net.get_parameter(name) for name in self._bias_names})
        return weights

    def chip(self, perturbation: Perturbation) -> dict[str, Tensor]:
        """The network's state dict with the weights of one chip, which plain PyTorch loads.

        It computes what that chip does unless outputs are quantised, which no state dict holds.

        Args:
            perturbation: see `forward`.

        Raises:
            KeyError: its names are not those of the arrays.
            ValueError: a layer computes its weight, or shares it with a table that is digital.

        Example:
            >>> crossbar = Crossbar(nn.Linear(2, 1), thg=0.1)
            >>> nn.Linear(2, 1).load_state_dict(crossbar.chip(crossbar.box.sample("vertex")))
            <All keys matched successfully>
        """
        return state_dict_of(self.net, self._arrays, self.weights(perturbation))

    def compute(self, inputs: Inputs, weights: Mapping[str, Tensor]) -> Any:
        """The output of the chip of those `weights`: `forward` in two steps, where one chip sees many batches.

        Images are laid out as by `laid_out`.

        Args:
            inputs: see `forward`, as are the errors.
            weights: see `weights`.

        Example:
            >>> crossbar = Crossbar(nn.Linear(2, 1), thg=0.1)
            >>> weights = crossbar.weights(crossbar.box.sample("vertex"))
            >>> [crossbar.compute(batch, weights).shape[0] for batch in torch.ones(5, 2).split(3)]
            [3, 2]
        """
        own, inputs = inputs, self.laid_out(inputs)
        if self._manners is None or not (self._manners.saw_two or two_that_differ(inputs) is None):
            with evaluating(self.net):
                self._manners = look(self.net, inputs, own, self._arrays, self._tensors_used())
        tensors = self.stand_ins(weights)
        if self._manners.writes and not self.net.training:
            tensors |= {name: _tensor(self.net, name).detach().clone() for name in self._manners.writes}
        if self._manners.changes_inputs:
            inputs = of_each(Tensor.clone, inputs)
        changes = [
            (array.layer, array.place, partial(self._in_devices, weights.get(name)))
            for name, array in self._arrays.items()
            if array.place is not None
        ]
        with self.outputs.attached() if self.outputs else nullcontext(), changed(changes):
            return run(self.net, tensors, inputs)

    def stand_ins(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a chip by each name of the network's parameter that they take the place of."""
        tensors = {}
        for name, weight in weights.items():
            if name not in self._arrays:
                tensors[name] = weight  # a bias
            elif self._arrays[name].place is None:
                tensors |= dict.fromkeys(self._arrays[name].names, weight)
        return tensors

    def laid_out(self, x: Inputs) -> Inputs:
        """Images in the order in memory that the network computes fastest in, see `MemoryLayout`."""
        return self._layout(x)

    @torch.no_grad()
    def calibrate(self, loader: Loader) -> None:
        """Set the ranges of quantised outputs anew from data, in eval mode; without `activation_bits` do nothing.

        Args:
            loader: batches (inputs, labels).

        Raises:
            ValueError: there are no batches, or no layer's output is a number.

        Example:
            >>> crossbar = Crossbar(nn.Linear(2, 1), thg=0.1, activation_bits=4)
            >>> crossbar.calibrate([(torch.ones(3, 2), torch.zeros(3))])
            >>> crossbar.outputs.ranges.isfinite()
            tensor([True])
        """
        if self.outputs is None:
            return
        self.outputs.forget()
        device = next(self.parameters()).device
        with evaluating(self):
            self.outputs.train()
            for batch in loader:
                self(of_each(lambda t: t.to(device), inputs_and_labels(batch)[0]))
            self.outputs.eval()
        if self.outputs.ranges.isnan().all():
            raise ValueError("calibrate: there were no batches, or no output was a number")

    def max_relative_perturbation(self, perturbation: Perturbation) -> float:
        """The largest absolute deviation in units of its full scale, computed in float64.

        Args:
            perturbation: deviations of some arrays by name, in weight units.

        Raises:
            KeyError: there is no array of a name.

        Example:
            >>> layer = nn.Linear(2, 1)
            >>> _ = nn.init.constant_(layer.weight, -2.0)
            >>> Crossbar(layer, thg=0.1).max_relative_perturbation({"weight": torch.tensor([[0.5, -1.0]])})
            0.5
        """
        scales = self.full_scales()
        largest = 0.0
        for name, deviation in perturbation.items():
            d = deviation.detach().abs().amax().item()
            largest = max(largest, d / scales[name].item() if d else 0.0)
        return largest

    def _full_scales_of(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.full_scale == "unit":
            return {name: in_float64(w.new_ones(())) for name, w in weights.items()}
        return {name: in_float64(w.abs().amax()) for name, w in weights.items()}

    def _tensors_used(self) -> dict[str, Tensor]:
        """The tensors that the network itself multiplies with, by array."""
        check_unchanged(self.net, self._arrays)
        return {name: used(array) for name, array in self._arrays.items()}

    def _in_devices(self, deviation: Tensor | None, computed: Tensor) -> Tensor:
        """The values that devices hold for a tensor that a layer computed."""
        (weight,) = self._quantised({"": computed}).values()
        return weight if deviation is None else deviate(weight, deviation)

    def _quantised(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.weight_bits is None:
            return tensors
        return {name: quantise(t, t.detach().abs().amax(), self.weight_bits) for name, t in tensors.items()}

    def _detached(self) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in self.programmed().items()}


def check_crossbar(crossbar: Any) -> None:
    """Refuse what is no crossbar, such as the network itself.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(crossbar, Crossbar):
        raise ValueError(
            f"a {type(crossbar).__name__} is no Crossbar; make one of the network: Crossbar(net, thg=0.03)"
        )


def _tensor(net: nn.Module, name: str) -> Tensor:
    """A parameter or buffer of a network."""
    module, _, name = name.rpartition(".")
    return getattr(net.get_submodule(module), name)
