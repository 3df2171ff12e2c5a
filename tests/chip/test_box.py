"""The box at its edges, in every dtype, and with ends that are not each other's opposite."""

import math

import pytest
import torch

from worstcase.chip.box import Box

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
KINDS = ["uniform", "vertex", "truncated_gaussian"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def double(value):
    return torch.tensor(value, dtype=torch.double)


def symmetric(thg=0.1, shape=(2, 3), dtype=torch.float32, full_scale=1.7):
    return Box.symmetric(thg, {"w": double(full_scale)}, {"w": torch.empty(shape, dtype=dtype)})


def lopsided(shape=(2, 3), dtype=torch.float32):
    """From -0.25 to 0.5, but the last column may only fall."""
    high = torch.full(shape, 0.5, dtype=dtype)
    high[:, -1] = 0
    return Box({"w": torch.tensor(-0.25, dtype=dtype)}, {"w": high}, {"w": torch.empty(shape, dtype=dtype)})


def toward(end, limit):
    return torch.nextafter(end, torch.full_like(end, limit))


@every_dtype
def test_its_ends_are_the_last_that_are_not_beyond_thg(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        thg, full_scale = torch.rand(2, dtype=torch.double, generator=generator).tolist()
        full_scale = torch.tensor(full_scale).to(dtype).double().item()  # as that of a weight
        box = symmetric(thg, dtype=dtype, full_scale=full_scale)
        low, high = box.low["w"], box.high["w"]
        assert low.dtype == high.dtype == dtype and low == -high == -box.half_width["w"]
        assert high.double() / full_scale <= thg
        assert toward(high, math.inf).double() >= thg * full_scale


@every_dtype
@pytest.mark.parametrize("make", [symmetric, lopsided])
def test_an_end_is_inside_and_the_next_number_is_not(dtype, make):
    box = make(dtype=dtype)
    low, high = (end["w"].expand(2, 3) for end in (box.low, box.high))
    assert box.contains({"w": low}) and box.contains({"w": high}) and box.contains(box.zero())
    for end, limit in ((low, -math.inf), (high, math.inf)):
        for place in range(6):
            one = end.clone()
            one.view(-1)[place] = toward(end, limit).reshape(-1)[place]
            assert not box.contains({"w": one}) and box.outside({"w": one}) == 1
    assert box.outside({"w": torch.full((2, 3), torch.nan, dtype=dtype)}) == 6


@every_dtype
def test_a_deviation_in_another_dtype_is_not_rounded_into_the_box(dtype):
    box = symmetric(dtype=torch.float32)
    above = torch.full((2, 3), 0.17).to(dtype)  # 0.1 x 1.7, rounded in some way
    exact = bool((above.double() <= box.high["w"].double()).all())
    assert box.contains({"w": above}) == exact
    narrow = symmetric(dtype=torch.bfloat16)
    assert not narrow.contains({"w": (narrow.high["w"].double() + 1e-9).expand(2, 3)})


def test_it_contains_deviations_of_exactly_its_arrays():
    box = symmetric()
    inside = box.zero()
    assert not box.contains({}) and not box.contains(inside | {"other": torch.zeros(1)})
    assert not box.contains({"w": torch.zeros(3)}) and not box.contains({"w": torch.zeros(2, 3, 1)})


@every_dtype
@pytest.mark.parametrize("make", [symmetric, lopsided])
def test_projection_is_the_nearest_point_and_moves_nothing_that_is_inside(dtype, make):
    box = make(dtype=dtype)
    d = {"w": torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)}
    d["w"][0, 0], d["w"][1, 1] = math.inf, 0.125
    before = d["w"].clone()
    projected = box.project(d)
    assert torch.equal(d["w"], before) and box.contains(projected)
    low, high = (end["w"].expand(2, 3) for end in (box.low, box.high))
    assert torch.equal(projected["w"], torch.minimum(torch.maximum(before, low), high))
    assert torch.equal(box.project(projected)["w"], projected["w"]) and projected["w"][1, 1] == 0.125
    box.project_(d)
    assert torch.equal(d["w"], projected["w"])


@every_dtype
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [symmetric, lopsided])
def test_samples_are_inside_and_the_generators(kind, dtype, make):
    box = make(shape=(50, 40), dtype=dtype)
    first, again, other = (box.sample(kind, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first["w"].dtype == dtype and box.contains(first) and box.contains(other)
    assert torch.equal(first["w"], again["w"]) and not torch.equal(first["w"], other["w"])


def test_samples_fill_a_box_whose_ends_differ():
    box = lopsided(shape=(100_000, 2))
    generator = torch.Generator().manual_seed(0)
    wide, narrow = box.sample("uniform", generator)["w"].T
    assert wide.mean().item() == pytest.approx(0.125, abs=0.003)  # of -0.25..0.5
    assert wide.std().item() == pytest.approx(0.75 / math.sqrt(12), rel=0.01)
    assert narrow.mean().item() == pytest.approx(-0.125, abs=0.002)  # of -0.25..0
    wide, narrow = box.sample("vertex", generator)["w"].T
    assert wide.unique().tolist() == [-0.25, 0.5] and narrow.unique().tolist() == [-0.25, 0]
    assert (wide > 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def test_relative_and_at_are_each_others_inverse():
    box = lopsided()
    d = {"w": torch.tensor([[-0.25, 0.5, 0.0], [0.25, -0.125, -0.25]])}
    relative = box.relative(d)
    assert relative["w"].tolist() == [[-1, 1, 0], [0.5, -0.5, -1]]
    assert torch.equal(box.at(relative)["w"], d["w"])
    assert box.relative({"w": torch.full((2, 3), 0.25)})["w"][:, 2].tolist() == [math.inf] * 2  # may not rise
    assert box.relative({"w": torch.full((2, 3), math.nan)})["w"].isnan().all()


@every_dtype
def test_what_is_relative_is_in_float32_at_least(dtype):
    box = symmetric(dtype=dtype)
    relative = box.relative(box.sample("vertex"))["w"]
    assert relative.dtype == (torch.double if dtype == torch.double else torch.float32)
    assert relative.abs().unique().tolist() == [1.0]


def test_a_box_without_width_holds_zero_alone():
    box = symmetric(thg=0.0)
    assert not box.movable and symmetric().movable == {"w"}
    assert all(not box.sample(kind)["w"].any() for kind in KINDS)
    assert not box.relative(box.zero())["w"].any()


def test_a_sign_step_ends_inside():
    box = lopsided()
    d = {"w": torch.tensor([[0.0, 0.0, 0.0], [-0.2, 0.4, -0.2]])}
    gradient = {"w": torch.tensor([[3.0, -1e-9, -1.0], [2.0, -5.0, 0.0]])}
    box.step_(d, gradient, {name: half / 3 for name, half in box.half_width.items()})
    # half the width is 0.375, of the last column 0.125
    expected = torch.tensor([[-0.125, 0.125, 0.0], [-0.25, 0.5, -0.2]])
    torch.testing.assert_close(d["w"], expected)
    assert gradient["w"][0, 0] == 3


def two_arrays():
    weights = {"a": torch.empty(2, 3), "b": torch.empty(4)}
    return Box.symmetric(0.5, {"a": double(2.0), "b": double(1.0)}, weights)


def test_a_restricted_box_leaves_the_weights_that_are_named():
    box = two_arrays()
    column = torch.tensor([True, False, True])
    part = box.restricted_to({"a": column})
    assert part.high["a"].tolist() == [1, 0, 1] and part.low["a"].tolist() == [-1, 0, -1]
    assert part.movable == {"a"} and not part.sample("vertex")["b"].any()
    assert part.contains(part.sample("vertex")) and not part.contains(box.sample("vertex"))
    half = box.restricted_to({"a": 0.5, "b": 1.0})
    assert half.high["a"] == 0.5 and half.high["b"] == 0.5
    assert part.is_part_of(box) and half.is_part_of(box) and box.is_part_of(box)
    assert not box.is_part_of(part) and not part.is_part_of(half) and not box.scaled(1.001).is_part_of(box)
    assert not box.is_part_of(symmetric())


@every_dtype
def test_no_factor_leads_out_of_the_box(dtype):
    box = symmetric(shape=(1000,), dtype=dtype)
    factors = torch.rand(1000, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    assert box.restricted_to({"w": factors}).is_part_of(box)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"c": 1.0}, r"^factors has c, but the arrays are a, b$"),
        ({"a": 1.5}, r"^factors of a: each must be 0\.\.1"),
        ({"a": 1.0, "b": -0.1}, r"^factors of b: each must be 0\.\.1"),
        ({"a": math.nan}, r"^factors of a: each must be 0\.\.1"),
        ({"a": torch.tensor([0.0, 1.0, 2.0])}, r"^factors of a: each must be 0\.\.1"),
        ({"a": torch.ones(2)}, r"^factors of a: shape \(2,\) does not broadcast to \(2, 3\)$"),
        ({"b": torch.ones(1, 4)}, r"^factors of b: shape \(1, 4\) does not broadcast to \(4,\)$"),
    ],
)
def test_factors_that_cannot_be(factors, message):
    with pytest.raises(ValueError, match=message):
        two_arrays().restricted_to(factors)


@pytest.mark.parametrize("factor", [-1, math.nan, math.inf, "2"])
def test_a_scale_that_cannot_be(factor):
    assert two_arrays().scaled(2).high["a"] == 2
    with pytest.raises(ValueError, match=r"factor=.*: must be"):
        two_arrays().scaled(factor)


def test_kinds_and_tolerances_that_cannot_be():
    with pytest.raises(ValueError, match="kind='corner': must be uniform, vertex or truncated_gaussian"):
        symmetric().sample("corner")
    with pytest.raises(ValueError, match="tolerance=-1: must be above 0"):
        symmetric().sample("truncated_gaussian", tolerance=-1)
