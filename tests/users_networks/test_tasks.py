"""Any task: pixels, tokens, single logits, dicts and tuples."""

import pytest
import torch
from answers import run
from torch import nn

from worstcase import Crossbar, attacks, evaluate
from worstcase.attacks.passes import accuracy
from worstcase.chip.modes import evaluating
from worstcase.methods import UniversalAT, Vanilla

pytestmark = pytest.mark.usefixtures("short_ensemble")


def test_pixels_and_tokens_are_decisions():
    torch.manual_seed(0)
    for net, x in (
        (nn.Conv2d(1, 3, 3, padding=1), torch.randn(16, 1, 8, 8)),
        (nn.Linear(6, 9), torch.randn(16, 5, 6)),
    ):
        logits = run(net, x)
        labels = logits.argmax(1 if x.ndim == 4 else 2)
        crossbar, attack = Crossbar(net, 0.3), attacks.Ensemble(rounds=1)
        result = evaluate(crossbar, [(x, labels)], attack, diagnosis="full", heldout=True, progress=False)
        assert 0 <= result.attacked_accuracy < result.clean_accuracy == 1
        assert result.samples == 16 and result.record().decisions == labels.numel()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1)
        return {"logits": self.head((self.table(input_ids) * mask).sum(1) / mask.sum(1))}


def test_batches_are_dicts_and_tuples():
    torch.manual_seed(0)
    net, ids, mask = Model().eval(), torch.randint(0, 50, (32, 7)), torch.ones(32, 7)
    labels = net(ids, mask)["logits"].argmax(1)
    by_name = [
        {"input_ids": i, "attention_mask": m, "labels": y}
        for i, m, y in zip(ids.split(10), mask.split(10), labels.split(10), strict=True)
    ]
    in_order = [((batch["input_ids"], batch["attention_mask"]), batch["labels"]) for batch in by_name]
    chosen = [attacks.FLWC(), attacks.LWC(epochs=2), attacks.Ensemble(rounds=1)]
    chosen += [attacks.MonteCarlo(instances=3)]
    results = [
        evaluate(Crossbar(net, 0.5), batches, chosen, heldout=True, progress=False)
        for batches in (by_name, in_order)
    ]
    assert results[0].clean_accuracy == 1 and results[0].attacked_accuracy < 1
    for one, other in zip(results[0].attacks, results[1].attacks, strict=True):
        assert one.history == other.history and one.heldout_accuracy == other.heldout_accuracy
    assert results[0].diagnosis == results[1].diagnosis
    trained = UniversalAT(Crossbar(net, 0.1), num_classes=3)
    assert trained.training_step(by_name[0], 0) == trained.training_step(in_order[0], 0)


@pytest.mark.parametrize("outputs", [1, 4])
def test_one_logit_for_each_label(outputs):
    torch.manual_seed(0)
    net, x = nn.Linear(6, outputs), torch.randn(64, 6)
    labels = (run(net, x) > 0).float()
    for attack in (attacks.MonteCarlo(instances=4), attacks.FLWC(), attacks.Ensemble()):
        result = evaluate(Crossbar(net, 0.3), [(x, labels)], attacks=[attack], progress=False)
        assert result.clean_accuracy == 1 and 0 <= result.attacked_accuracy < 1
    with evaluating(net):
        assert Vanilla(Crossbar(net, 0.3), num_classes=2).training_loss(x, labels).isfinite()


def test_one_hot_labels_are_refused_whatever_the_batches_and_the_shape():
    x, answers = torch.randn(16, 5, 6), torch.randint(0, 3, (16, 5))
    one_hot = nn.functional.one_hot(answers, 3).float()
    for images, labels in ((x, one_hot), (x[:, 0], one_hot[:, 0])):
        batches = list(zip(images.split(4), labels.split(4), strict=True))
        for attack in (attacks.MonteCarlo(instances=2), attacks.FLWC()):
            with pytest.raises(ValueError, match="the labels are one-hot"):
                attack(Crossbar(nn.Linear(6, 3), 0.05), batches, progress=False)
        with pytest.raises(ValueError, match="the labels are one-hot"):
            accuracy(Crossbar(nn.Linear(6, 3), 0.05), batches)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"logits": t.squeeze(1).double()}])
@pytest.mark.parametrize("attack", [attacks.MonteCarlo(instances=2), attacks.FLWC()])
def test_probabilities_in_place_of_logits_are_refused(wrap, attack):
    class Net(nn.Sequential):
        def forward(self, x):
            return wrap(super().forward(x))

    x = torch.randn(64, 6)
    net = Net(nn.Linear(6, 1), nn.Sigmoid())
    with pytest.raises(ValueError, match="the network ends in a sigmoid: leave it out"):
        attack(Crossbar(net, 0.1), [(x, (x[:, 0] > 0).long())], progress=False)
    several = nn.Sequential(nn.Linear(6, 3), nn.Sigmoid())  # the largest is the answer, as without it
    assert attack(Crossbar(several, 0.1), [(x, torch.arange(64) % 3)], progress=False).samples == 64


@pytest.mark.parametrize(
    "labels", [torch.rand(16, 3), torch.arange(16) % 3 + 1, torch.randint(0, 3, (16, 1)).float()]
)
def test_other_labels_are_one_clear_error_for_every_attack(labels):
    for attack in (attacks.MonteCarlo(instances=2), attacks.FLWC(), attacks.Ensemble(rounds=1)):
        with pytest.raises(ValueError, match="label"):
            attack(Crossbar(nn.Linear(5, 3), 0.05), [(torch.randn(16, 5), labels)], progress=False)
