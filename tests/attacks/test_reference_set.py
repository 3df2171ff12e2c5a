"""The digest of the reference set: of each sample, and of nothing else."""

import pytest
import torch

from worstcase.attacks.reference_set import ReferenceSet, mixed

LABELS = torch.arange(12) % 3
LARGEST = torch.finfo(torch.float32).max


def digest_of(inputs, labels=LABELS, order=slice(None), size=5):
    def part(t):
        return t[order].split(size)

    if isinstance(inputs, dict):
        columns = zip(*map(part, inputs.values()), strict=True)
        batches = [dict(zip(inputs, column, strict=True)) for column in columns]
    else:
        batches = part(inputs)
    reference = ReferenceSet(list(zip(batches, part(labels), strict=True)))
    for _ in reference:
        pass
    return reference.digest


def numbers(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "inputs",
    [
        numbers((12, 3, 4)),
        numbers((12, 3, 4)).transpose(1, 2),
        numbers((1, 4)).expand(12, 4),
        numbers(12).bfloat16(),
        numbers((12, 5)).half(),
        numbers((12, 5)).double(),
        numbers((12, 5)) > 0,
        numbers((12, 5)).mul(100).byte(),
        torch.complex(numbers((12, 5)), numbers((12, 5))).conj(),
        {"id": torch.arange(12) + 1_700_000_000_000_000_000, "x": numbers((12, 5))},
        torch.zeros(12, 0),
    ],
    ids=lambda inputs: f"{inputs.dtype} {inputs.stride()}" if isinstance(inputs, torch.Tensor) else "dict",
)
def test_it_is_the_same_in_any_order_and_batches(inputs):
    found = digest_of(inputs)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert found == digest_of(inputs, order=order, size=12) == digest_of(inputs, order=order, size=1)
    assert found != digest_of(inputs, labels=LABELS + 1)
    assert found != digest_of(inputs, order=order[:-1])


@pytest.mark.parametrize("constant", [-LARGEST, 1e9, 1.7e18, torch.inf, torch.nan, 0.0])
@pytest.mark.parametrize("beside", [True, False])
def test_no_number_hides_another(constant, beside):
    x, constant = numbers((12, 5)), torch.full((12, 2), constant)

    def inputs(x):
        return {"mask": constant, "x": x} if beside else torch.cat([constant, x], 1)

    other = x.clone()
    other[7, 3] = other[7, 3].nextafter(torch.tensor(9.0))
    assert digest_of(inputs(x)) != digest_of(inputs(other))


def test_mixed_numbers_are_those_of_splitmix64():
    """The first three of its public test vector, whose state moves by the golden ratio."""
    found = mixed(torch.arange(1, 4) * (0x9E3779B97F4A7C15 - 2**64))
    assert [f"{x % 2**64:016x}" for x in found.tolist()] == [
        "e220a8397b1dcdaf",
        "6e789e6aa1b965f4",
        "06c45d188009454f",
    ]


def test_sparse_inputs_are_what_they_hold():
    x, labels = numbers((12, 5)), LABELS
    dense, sparse = ReferenceSet([(x, labels)]), ReferenceSet([(x.to_sparse(), labels)])
    assert list(dense) and list(sparse) and dense.digest == sparse.digest


@pytest.mark.parametrize("sizes", [[5, 5, 2], [2, 2]])
def test_an_input_that_all_samples_share_must_not_be_as_long_as_a_batch(sizes):
    times = torch.tensor([1.0, 2.0])
    data = [((numbers((sum(sizes), 2)).split(sizes)[i], times), LABELS[:n]) for i, n in enumerate(sizes)]
    with pytest.raises(ValueError, match=r"^an input of shape \(2,\) seems to be one for all samples"):
        list(ReferenceSet(data))


@pytest.mark.parametrize(
    "beside",
    [torch.ones(2, 3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0), torch.eye(2, 3)[:1]],
    ids=["mask", "shared", "a number", "one entry"],
)
def test_other_inputs_are_no_ambiguous_ones(beside):
    data = [((x, beside), LABELS[:2]) for x in numbers((4, 2)).split(2)]
    data.append(((numbers((1, 2)), beside[:1] if beside.shape == (2, 3) else beside), LABELS[:1]))
    assert list(ReferenceSet(data)) == data
    repeated = [((numbers((2, 2)), torch.tensor([1.0, 2.0])), LABELS[:2])] * 2
    assert list(ReferenceSet(repeated)) == repeated
