"""On a device without float64, as Apple's GPU: played by tensors on the CPU that say they are elsewhere."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, MonteCarlo
from worstcase.chip.box import Box
from worstcase.chip.noise import gaussian, per_device, programmed, right_censored_gaussian
from worstcase.methods import Trice, VariationAware

MPS = torch.device("mps", 0)


class OnMPS(torch.Tensor):
    """What its data are, but on another device; only within `NoFloat64`."""

    data_on_cpu: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data):
        if data.dtype == torch.double:
            raise TypeError("the device has no float64")
        self = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), dtype=data.dtype, device="meta"
        )
        self.data_on_cpu = data
        return self

    @property
    def device(self):
        return MPS

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the block")


class NoFloat64(TorchDispatchMode):
    """Computes on `OnMPS`, and refuses what that device would: float64, and tensors that are elsewhere."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        with self:  # of inference mode also operations that are made of others
            if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                return out
        there, here = [], []

        def look(x):
            (there if isinstance(x, OnMPS) else here).append(x)
            return x

        tree_map_only(torch.Tensor, look, (args, kwargs))
        goes_there = bool(there)
        if kwargs.get("device") is not None:
            goes_there = kwargs["device"].type == "mps"
            kwargs["device"] = torch.device("cpu")
        copies = func.overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
        if there and not copies and any(x.ndim for x in here):
            raise RuntimeError(f"{func}: tensors on the CPU and on {MPS}")
        originals = {id(x.data_on_cpu): x for x in there}
        args, kwargs = tree_map_only(OnMPS, lambda x: x.data_on_cpu, (args, kwargs))
        out = func(*args, **kwargs)
        if kwargs.get("dtype") == torch.double and goes_there:
            raise TypeError(f"{func}: the device has no float64")
        if not goes_there:
            return out
        return tree_map_only(torch.Tensor, lambda x: originals[id(x)] if id(x) in originals else OnMPS(x), out)


def moved(net):
    """The network's tensors are on the other device."""
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnMPS(parameter.detach().clone()))
        for name, buffer in module._buffers.items():
            module._buffers[name] = OnMPS(buffer.clone())
    return net


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(6, 3)


def on_cpu(tensors):
    return {name: t.data_on_cpu for name, t in tensors.items()}


def test_the_device_refuses_float64_and_the_cpus_tensors():
    with NoFloat64():
        x = OnMPS(torch.ones(3))
        assert x.device.type == "mps" and x.cpu().device.type == "cpu" and x.cpu().double().dtype == torch.double
        for wrong in (
            x.double,
            lambda: x.to(torch.double),
            lambda: torch.zeros(2, dtype=torch.double, device=x.device),
            lambda: torch.ones(2, dtype=torch.double).to(x.device),
        ):
            with pytest.raises(TypeError, match="no float64"):
                wrong()
        with pytest.raises(RuntimeError, match="on the CPU"):
            x + torch.ones(3)


@pytest.mark.parametrize("full_scale", ["layer_max", "unit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"weight_bits": 4}])
def test_bounds_are_those_of_the_cpu(full_scale, dtype, options, layer):
    layer = layer.to(dtype)
    thgs = torch.rand(50, dtype=torch.double).tolist()
    here = Crossbar(layer, 0.1, full_scale=full_scale, **options)
    expected = []
    for thg in thgs:
        with here.bounded_by(thg):
            expected.append((here.bound()["weight"], here.full_scales()["weight"]))
    at = {"weight": expected[-1][0].expand(3, 6).clone()}
    above = {"weight": torch.nextafter(at["weight"], torch.full_like(at["weight"], torch.inf))}
    relative = here.max_relative_perturbation(above)
    with NoFloat64():
        there = Crossbar(moved(layer), 0.1, full_scale=full_scale, **options)
        for thg, (bound, scale) in zip(thgs, expected, strict=True):
            there.thg = thg
            found = there.bound()["weight"]
            assert found.device == MPS and torch.equal(found.data_on_cpu, bound)
            exact = there.full_scales()["weight"]
            assert exact.dtype == torch.double and exact == scale
        for deviation, feasible in ((at, True), (above, False)):
            deviation = {name: OnMPS(d) for name, d in deviation.items()}
            assert there.box.contains(deviation) == feasible
        assert there.max_relative_perturbation(deviation) == relative
        mask = torch.zeros(3, 6, dtype=torch.double)
        for factor in (0.0, mask, OnMPS(mask.bool())):
            assert not there.box.restricted_to({"weight": factor}).movable


@pytest.mark.parametrize(
    "attack",
    [
        FLWC(steps=3),
        FLWC(update="epoch", steps=3),
        LWC(epochs=2),
        MonteCarlo(instances=5),
        MonteCarlo(instances=5, sampler="gaussian", sigma=0.1),
        MonteCarlo(instances=5, sampler="programmed", max_pulses=2, weight_bits=4, device_bits=2),
    ],
)
@pytest.mark.parametrize("thg", [0.0, 0.3])
def test_attacks_find_what_they_find_on_the_cpu(attack, thg, small_net, small_batches):
    expected = attack(Crossbar(small_net.eval(), thg), small_batches, progress=False)
    with NoFloat64():
        found = attack(Crossbar(moved(small_net), thg), small_batches, progress=False)
        assert found.accuracy == pytest.approx(expected.accuracy, abs=1 / 40)
        assert found.feasible and found.max_relative_perturbation <= thg
        assert all(d.device == MPS for d in found.perturbation.values())


@pytest.mark.parametrize("sampler", [gaussian, right_censored_gaussian])
def test_samplers_draw_there_from_a_scale_that_is_there_or_in_float64(sampler):
    with NoFloat64():
        for scale in (OnMPS(torch.tensor(0.2)), torch.tensor(0.2, dtype=torch.double)):
            drawn_there(partial(sampler, {"w": OnMPS(torch.empty(500))}, {"w": scale}))


def test_samples_of_a_box_are_drawn_there():
    with NoFloat64():
        full_scale = torch.tensor(2.0, dtype=torch.double)
        box = Box.symmetric(0.1, {"w": full_scale}, {"w": OnMPS(torch.empty(500))})
        for kind in ("uniform", "vertex", "truncated_gaussian"):
            drawn_there(partial(box.sample, kind))
        drawn_there(partial(programmed, box))
        drawn_there(per_device(partial(box.sample, "uniform"), 4, 2))


def drawn_there(draw):
    sample = draw(torch.Generator().manual_seed(0))["w"]
    assert sample.device == MPS and sample.dtype == torch.float32
    assert 0.05 < sample.data_on_cpu.std() < 0.25


@pytest.mark.parametrize("method", [partial(VariationAware, sigma=0.2), partial(Trice, sigma=0.2, threshold=0.5)])
def test_training_noise_is_that_of_the_cpu(method, layer):
    images, labels = torch.randn(4, 6), torch.tensor([0, 2, 1, 1])
    expected = method(Crossbar(layer, 0.1), num_classes=3).training_loss(images, labels)
    with NoFloat64():
        module = method(Crossbar(moved(layer), 0.1), num_classes=3)
        loss = module.training_loss(OnMPS(images), OnMPS(labels))
        assert loss.device == MPS
        assert loss.detach().cpu().item() == pytest.approx(expected.item())
        loss.backward()
        assert layer.weight.grad.data_on_cpu.any()
