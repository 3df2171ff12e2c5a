import torch

from worstcase.objectives import margin, p2

LOGITS = [[3.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]]  # right by 2, wrong by 1, tied
LABELS = torch.tensor([0, 2, 0])


def test_margin_and_p2_by_hand():
    logits = torch.tensor(LOGITS)
    assert margin(logits, LABELS).tolist() == [2.0, -1.0, 0.0]
    assert p2(logits, LABELS).tolist() == [2.0, 0.0, 0.0]


def test_gradient_of_p2_by_hand():
    logits = torch.tensor(LOGITS, requires_grad=True)
    p2(logits, LABELS)[:2].sum().backward()
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_p2_is_positive_exactly_where_the_answer_is_right():
    logits = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(p2(logits, labels) > 0, logits.argmax(1) == labels)
