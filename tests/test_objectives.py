import math

import pytest
import torch
import torch.nn.functional as F

from worstcase import objectives
from worstcase.objectives import OBJECTIVES, margin, objective

LOGITS = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]])  # right by 2, wrong by 1, tied
LABELS = torch.tensor([0, 2, 0])


def test_objectives_have_the_values_of_eq_7_worked_out_by_hand():
    """p2, p3, p6 and p7 as printed; p1, p4 and p5 as corrected in their docstrings."""
    z = torch.tensor([[math.exp(o) / sum(map(math.exp, row)) for o in row] for row in LOGITS.tolist()])
    z_t = [z[0, 0], z[1, 2], z[2, 0]]
    z_margin = [z[0, 0] - z[0, 1], z[1, 2] - z[1, 1], 0.0]
    by_hand = {
        "p1": [1 + math.log(p) for p in z_t],
        "p2": [2.0, 0.0, 0.0],
        "p3": [math.log(1 + math.exp(m)) - math.log(2) for m in (2.0, -1.0, 0.0)],
        "p4": [max(p - 0.5, 0) for p in z_t],
        "p5": [-math.log(2 - 2 * p) for p in z_t],
        "p6": [max(m, 0) for m in z_margin],
        "p7": [math.log(1 + math.exp(m)) - math.log(2) for m in z_margin],
        "cross_entropy": [math.log(p) for p in z_t],
        "sigmoid_margin": [1 / (1 + math.exp(-m)) for m in (2.0, -1.0, 0.0)],
        "sigmoid_margin:0.5": [1 / (1 + math.exp(-2 * m)) for m in (2.0, -1.0, 0.0)],
        "dlr": [2 / 3, -1 / 2, 0.0],
        "into_class:1": [-math.log(z[0, 1]), -math.log(z[1, 1]), -math.log(z[2, 1])],
        "into_class:0": [0.0, -math.log(z[1, 0]), 0.0],
    }
    assert {name.partition(":")[0] for name in by_hand} == set(OBJECTIVES)
    for name, values in by_hand.items():
        torch.testing.assert_close(objective(name)(LOGITS, LABELS), torch.tensor(values), msg=name)


def test_the_margin_has_the_values_worked_out_by_hand():
    assert margin(LOGITS, LABELS).tolist() == [2.0, -1.0, 0.0]


def test_the_gradient_of_p2_is_zero_for_wrong_answers():
    logits = LOGITS.clone().requires_grad_()
    objectives.p2(logits, LABELS)[:2].sum().backward()
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", ["p2", "p3", "p4", "p5", "p6", "p7"])
def test_objectives_are_positive_only_for_right_answers(name):
    """The condition of Eq. 6. p2, p3, p6 and p7 are positive for all right answers, p4 and p5 if Z_t > 0.5."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1000, 7, generator=generator)
    labels = torch.randint(7, (1000,), generator=generator)
    positive, right = objective(name)(logits, labels) > 0, logits.argmax(1) == labels
    assert right[positive].all() and positive.any()
    if name in ("p2", "p3", "p6", "p7"):
        assert torch.equal(positive, right)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_minimising_an_objective_lowers_the_true_logit(name):
    """From a right answer, every objective pushes the true logit down (into_class with another target class)."""
    logits = torch.tensor([[1.0, 0.5, 0.0]], requires_grad=True)
    objective("into_class:1" if name == "into_class" else name)(logits, torch.tensor([0])).sum().backward()
    if name != "p4" and name != "p5":
        assert logits.grad[0, 0] > 0
    confident = torch.tensor([[2.0, 0.5, 0.0]], requires_grad=True)
    objective("into_class:1" if name == "into_class" else name)(confident, torch.tensor([0])).sum().backward()
    assert confident.grad[0, 0] > 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_extreme_logits_give_finite_values_and_gradients(name):
    logits = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    value = objective(name)(logits, torch.tensor([0, 1, 0]))
    value.sum().backward()
    assert value.isfinite().all() and logits.grad.isfinite().all()


def test_cross_entropy_agrees_with_pytorch():
    torch.testing.assert_close(
        -objectives.cross_entropy(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, reduction="none")
    )


@pytest.mark.parametrize(
    "name",
    ["p8", "", "p2:x", "p2:1", "into_class:x", "into_class:1.7", "into_class:-1", "sigmoid_margin:0"]
    + [f"sigmoid_margin:{bad}" for bad in ("nan", "inf", "-1", "x")],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="must be one of p1, p2"):
        objective(name)


def test_a_target_class_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="into_class:3: there are 3 classes"):
        objective("into_class:3")(LOGITS, LABELS)


def test_dlr_needs_three_classes():
    with pytest.raises(ValueError, match="three classes"):
        objectives.dlr(torch.zeros(1, 2), torch.tensor([0]))
