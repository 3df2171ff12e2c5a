"""From outputs and labels to decisions, each right or wrong."""

from types import SimpleNamespace

import pytest
import torch

from worstcase.batches import can_be_joined, inputs_and_labels, joined, split, taken
from worstcase.task import check, decisions, refuse_one_hot, right_answers


def checked(outputs, labels):
    check(outputs, labels)
    return decisions(outputs, labels)


def share(outputs, labels):
    return right_answers(*checked(outputs, labels)).double().mean().item()


def test_a_label_a_sample_is_as_it_is():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = checked(logits, labels)
    assert found[0] is logits and torch.equal(found[1], labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
def test_labels_of_any_whole_type_become_int64(dtype):
    labels = torch.tensor([0, 1, 1])
    assert torch.equal(checked(torch.randn(3, 2), labels.to(dtype))[1], labels)
    assert torch.equal(checked(torch.randn(3, 1), labels.to(dtype))[1], labels)


@pytest.mark.parametrize(
    "wrap", [lambda t: {"logits": t}, lambda t: {"out": t}, lambda t: (t, 1), lambda t: SimpleNamespace(logits=t)]
)
def test_logits_are_found_in_what_networks_give(wrap):
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(checked(wrap(logits), labels)[0], logits)


def test_each_pixel_is_a_decision_and_those_of_an_ignore_index_are_none():
    logits = torch.randn(2, 3, 4, 5)
    labels = logits.argmax(1)
    labels[0, 0, 0] = (labels[0, 0, 0] + 1) % 3
    labels[1, :2, 0], labels[1, 2:, 0] = -100, 255
    flat, answers = checked(logits, labels)
    assert flat.shape == (36, 3) and answers.shape == (36,)
    assert share(logits, labels) == 35 / 36


def test_each_token_is_a_decision():
    logits = torch.randn(2, 7, 30)
    labels = logits.argmax(2)
    labels[:, 5:] = -100
    assert checked(logits, labels)[0].shape == (10, 30) and share(logits, labels) == 1


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 1, 4, 4), (6, 5), (6, 5, 4)])
def test_one_logit_a_label_means_one_from_above_zero(shape):
    logits = torch.randn(shape)
    for labels in (logits > 0, (logits > 0).float(), (logits > 0).long()):
        labels = labels.clone()
        if shape[1:2] == (5,):
            labels[0] = 1 - labels[0].int()
            assert share(logits, labels) == 5 / 6
        else:
            assert share(logits, labels) == 1
    if shape[1:] and shape[1] == 1:
        assert share(logits, (logits > 0).squeeze(1)) == 1
    two, labels = checked(logits, (logits > 0).long())
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, (logits > 0).float())
    torch.testing.assert_close(torch.nn.functional.cross_entropy(two, labels), expected)


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (torch.randn(9, 3), torch.randn(9), "labels of torch.float32: give each the number of its class"),
        (torch.randn(9, 3), torch.rand(9, 3), "every label must be 0 or 1"),
        (torch.randn(9, 1), torch.randn(9), "every label must be 0 or 1"),
        (torch.randn(9), torch.arange(9), "every label must be 0 or 1"),
        (torch.randn(9, 3), torch.arange(9) % 3 + 1, "each label must be 0 to 2, but one is 3"),
        (torch.randn(9, 3), -torch.ones(9).long(), "each label must be 0 to 2, but one is -1"),
        (torch.randn(9, 3), torch.zeros(9, 1).long(), r"outputs \(9, 3\) with labels \(9, 1\): expected"),
        (torch.randn(2, 4, 4), torch.zeros(2, 4).long(), "may be in the second or in the last place"),
        (torch.randn(2, 3, 8, 8), torch.zeros(2, 16, 16).long(), r"with labels \(2, 16, 16\): expected"),
        ({"scores": torch.randn(2, 3)}, torch.zeros(2).long(), "a dict or an object with logits"),
    ],
)
def test_anything_else_is_one_clear_error(outputs, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        check(outputs, labels)
    assert "label" in str(error.value) or "network" in str(error.value)
    assert "\n" not in str(error.value)


ONE_HOT = torch.eye(3)[torch.arange(24) % 3]


@pytest.mark.parametrize(
    "labels",
    [ONE_HOT, ONE_HOT.view(2, 12, 3), ONE_HOT.view(2, 3, 4, 3).movedim(-1, 1).contiguous()],
    ids=["classes", "tokens", "pixels"],
)
def test_one_hot_labels_are_told_from_several_labels_a_sample_by_a_whole_pass(labels):
    for part in (1, 2):
        found = [check(torch.randn(batch.shape), batch) for batch in labels.split(part)]
        with pytest.raises(ValueError, match=r"the labels are one-hot: give the number of each class"):
            refuse_one_hot(found)
    more = labels.clone()
    more[-1] = 1  # the last sample has all labels
    refuse_one_hot([check(torch.randn(batch.shape), batch) for batch in more.split(1)])
    unknown = labels.clone()
    unknown[unknown == 0] = -100  # one is known of each sample, and the others may be
    refuse_one_hot([check(torch.randn(labels.shape), unknown)])


def test_one_positive_pixel_in_each_column_is_no_one_hot_label():
    masks = torch.zeros(9, 6, 5).long()
    masks[:, 2] = 1
    refuse_one_hot([check(torch.randn(9, 1, 6, 5), masks)])


@pytest.mark.parametrize("batch", [{"x": torch.ones(2, 3), "n": [1, 3]}, (torch.ones(2, 3), [1, 3])])
def test_a_list_with_an_entry_for_each_sample_is_refused(batch):
    with pytest.raises(ValueError, match="is a list with an entry for each sample; make it a tensor"):
        inputs_and_labels((batch, torch.zeros(2)))


def test_batches_of_dicts_and_tuples_are_taken_apart_and_joined_like_tensors():
    x, ids, labels = torch.randn(10, 3), torch.arange(20).view(10, 2), torch.arange(10)
    for batch in ({"x": x, "ids": ids, "scale": torch.ones(()), "labels": labels}, ([x, ids], labels)):
        inputs, found = inputs_and_labels(batch)
        assert found is labels
        pieces = split(inputs, labels, 3)
        assert [len(part) for _, part in pieces] == [4, 3, 3]
        again, of_pieces = joined(pieces)
        assert torch.equal(of_pieces, labels) and can_be_joined((again, of_pieces), (inputs, labels))
        keys = ("x", "ids") if isinstance(inputs, dict) else (0, 1)
        assert all(torch.equal(again[key], inputs[key]) for key in keys)
        assert torch.equal(taken(inputs, slice(1, None, 2))[keys[1]], ids[1::2])
