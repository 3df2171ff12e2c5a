"""Settings, starts and data that an attack cannot use are named."""

import numpy as np
import pytest
import torch

from worstcase import Crossbar
from worstcase.attacks import FLWC, LWC, PGD, MonteCarlo
from worstcase.attacks.passes import accuracy as accuracy_of


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (FLWC, {"steps": 0}, "steps=0: must be 1 or more"),
        (FLWC, {"update": "never"}, "must be batch or epoch"),
        (LWC, {"epochs": 0}, "must be 1 or more"),
        (LWC, {"lr": -1.0}, "lr=-1.0: must be above 0"),
        (LWC, {"c_range": (1.0, 0.5)}, "the smaller first"),
        (LWC, {"project": "never"}, "must be step or end"),
        (FLWC, {"steps": 10.0}, r"steps=10\.0: must be a whole number, 1 or more"),
        (PGD, {"steps": True}, "steps=True: must be a whole number, 1 or more"),
        (LWC, {"epochs": 2.5}, r"epochs=2\.5: must be a whole number, 1 or more"),
        (LWC, {"trials": "8"}, "trials='8': must be a whole number, 1 or more"),
        (LWC, {"lr": float("nan")}, "lr=nan: must be above 0 and finite, in units of the bound"),
        (LWC, {"lr": True}, "lr=True: must be a number, above 0"),
        (LWC, {"c_range": (1.0, float("inf"))}, "must be two finite numbers above 0"),
        (LWC, {"c_range": (1.0, 2.0, 3.0)}, "must be two finite numbers above 0"),
        (LWC, {"c_range": 3.0}, "must be two finite numbers above 0"),
    ],
)
def test_settings_out_of_range(attack, options, message):
    with pytest.raises(ValueError, match=message):
        attack(**options)


def test_a_seed_is_a_number_of_python(small_net, small_batches):
    with pytest.raises(ValueError, match=r"seed=.*: must be .*Python's own: \.item\(\) makes it so"):
        MonteCarlo(instances=2)(Crossbar(small_net, 0.1), small_batches, seed=np.int64(3))


def test_only_bfloat16_is_a_lower_dtype(small_net, small_batches):
    with pytest.raises(ValueError, match="search_dtype='float16': must be bfloat16 or None"):
        FLWC()(Crossbar(small_net, 0.1), small_batches, search_dtype="float16")


@pytest.mark.parametrize("attack", [LWC(lr=1e300), LWC(lr=1e300, project="end"), LWC(c_range=(1.0, 1e300))])
def test_settings_too_large_to_compute_with_are_no_defect_of_the_attack(attack, small_net, small_batches):
    with pytest.raises(ValueError, match="steps are too large; lower lr or c_range"):
        attack(Crossbar(small_net, 0.1), small_batches, progress=False)


def test_a_box_that_is_not_a_part_of_the_crossbars_is_refused(small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    for box in (Crossbar(small_net, 0.11).box, Crossbar(small_net, 0.1, exclude=["0"]).box):
        with pytest.raises(ValueError, match=r"box is not a part of the crossbar's at th_g = 0\.1; use its"):
            FLWC()(crossbar, small_batches, box=box, progress=False)
    corner = crossbar.box.sample("vertex")
    with pytest.raises(ValueError, match="start is not in the box"):
        FLWC()(crossbar, small_batches, box=crossbar.box.scaled(0.5), start=corner, progress=False)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (lambda d: {name: x + 9 for name, x in d.items()}, r"not in the box at th_g = 0\.1; use box\.project"),
        (lambda d: {name: x * torch.nan for name, x in d.items()}, "not in the box"),
        (
            lambda d: d | {"fc.weight": torch.zeros(3)},
            r"start has fc\.weight, but the arrays are 0\.weight, 5\.weight",
        ),
        (lambda d: {"0.weight": d["0.weight"]}, r"start needs a deviation of 5\.weight of its shape \(3, 64\)"),
        (lambda d: {name: x.flatten() for name, x in d.items()}, r"0\.weight of its shape \(4, 1, 3, 3\)"),
    ],
)
def test_a_start_that_is_no_perturbation_within_the_bound_is_refused(start, message, small_net, small_batches):
    crossbar = Crossbar(small_net, 0.1)
    with pytest.raises(ValueError, match=message):
        FLWC()(crossbar, small_batches, start=start(crossbar.box.zero()), progress=False)


def test_a_reference_set_that_can_be_gone_through_once_is_refused(small_net, small_batches):
    with pytest.raises(ValueError, match="only once; give a list or a DataLoader"):
        FLWC()(Crossbar(small_net, 0.1), iter(small_batches), progress=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "the data are a NoneType; give a list of batches or a DataLoader"),
        (lambda: [], "the data are a function; give a list of batches or a DataLoader"),
        ([(torch.tensor(5.0), torch.tensor([1]))], "there are 0 inputs and"),
    ],
)
def test_what_is_no_data_is_refused(data, message, small_net):
    with pytest.raises(ValueError, match=message):
        FLWC()(Crossbar(small_net, 0.1), data, progress=False)


def test_an_empty_reference_set_is_refused(small_net):
    with pytest.raises(ValueError, match="no samples"):
        FLWC()(Crossbar(small_net, 0.1), [], progress=False)


def relabelled(change):
    """Batches whose labels, or more of them, are something else."""
    return lambda batches: [change(images, labels) for images, labels in batches]


WRONG_DATA = {
    "a label of -1": (relabelled(lambda x, y: (x, y - 1)), "each label must be 0 to 2, but one is -1"),
    "a label too many": (relabelled(lambda x, y: (x, y + 1)), "each label must be 0 to 2, but one is 3"),
    "floats": (relabelled(lambda x, y: (x, y.float())), r"labels of torch\.float32: give each the number"),
    "a column": (relabelled(lambda x, y: (x, y[:, None])), r"outputs \(\d+, 3\) with labels \(\d+, 1\)"),
    "one label short": (relabelled(lambda x, y: (x, y[1:])), r"\d+ inputs and torch\.int64 labels of shape"),
    "a list": (relabelled(lambda x, y: (x, y.tolist())), "its labels are a list; make them a tensor"),
    "three parts": (
        relabelled(lambda x, y: (x, y, y)),
        r"must be \(inputs, labels\), tensors with a label for each input, or a dict",
    ),
    "a mapping": (relabelled(lambda x, y: {"x": x, "y": y}), "or a dict with labels, not a dict of x, y"),
    "images alone": (relabelled(lambda x, y: x), r"must be \(inputs, labels\), tensors with a label for"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_DATA.values(), ids=WRONG_DATA.keys())
@pytest.mark.parametrize(
    "scored", [FLWC(), MonteCarlo(instances=3), accuracy_of], ids=["flwc", "monte carlo", "one"]
)
def test_labels_that_do_not_belong_to_the_network_are_named(scored, wrong, message, small_net, small_batches):
    batches = small_batches[:2] + wrong(small_batches)[2:] if scored is accuracy_of else wrong(small_batches)
    with pytest.raises(ValueError, match=message) as error:
        scored(Crossbar(small_net, 0.1), batches)
    assert "label" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda out: out[:, :, None], r"outputs \(16, 3, 1\) with labels \(16,\): expected outputs \(N, C\)"),
        (lambda out: out[1:], r"outputs \(15, 3\) with labels \(16,\)"),
        (lambda out: {"scores": out}, "a tuple whose first is a tensor, not a dict"),
    ],
)
def test_outputs_that_are_no_scores_of_classes_are_named(head, message, small_net, small_batches):
    small_net.register_forward_hook(lambda module, inputs, out: head(out))
    with pytest.raises(ValueError, match=message):
        FLWC()(Crossbar(small_net, 0.1), small_batches, progress=False)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_be_integers_of_any_size(dtype, small_net, small_batches):
    expected = FLWC(steps=2)(Crossbar(small_net, 0.1), small_batches, progress=False)
    batches = [(images, labels.to(dtype)) for images, labels in small_batches]
    assert FLWC(steps=2)(Crossbar(small_net, 0.1), batches, progress=False).history == expected.history


def test_labels_are_looked_at_in_the_first_pass_alone(small_net, small_batches, monkeypatch):
    """Since looking at their values waits for the device."""
    looked = []
    monkeypatch.setattr("worstcase.attacks.search.check", lambda out, labels, **_: looked.append(len(labels)))
    FLWC(steps=2)(Crossbar(small_net, 0.1), small_batches, progress=False)
    assert looked == [16, 16, 8]
