import pytest
import torch
from torch.utils.data import DataLoader

from worstcase.data import InMemoryDataModule
from worstcase.data.augmentation import flip_and_crop, standardise
from worstcase.data.base import ShuffledBatches


class Numbered(InMemoryDataModule):
    """Forty training and twenty test images, each of one grey level that tells which it is."""

    num_classes = 2

    def load(self):
        def split(numbers):
            return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), numbers % 2

        return split(torch.arange(40)), split(torch.arange(100, 120))


def numbers(loader: DataLoader) -> list[int]:
    return [round(255 * image[0, 0, 0].item()) for images, _ in loader for image in images]


def test_a_limit_draws_training_images_by_seed_and_test_images_the_same_for_all():
    first, again, other = (Numbered(limit=10, seed=seed, batch_size=4) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.setup()
        drawn = numbers(data.train_dataloader()) + numbers(data.val_dataloader())
        assert len(set(drawn)) == 10 and max(drawn) < 40
    assert numbers(first.val_dataloader()) == numbers(again.val_dataloader())
    assert numbers(first.val_dataloader()) != numbers(other.val_dataloader())
    assert numbers(first.test_dataloader()) == numbers(other.test_dataloader())
    assert len(numbers(first.test_dataloader())) == 10
    assert numbers(Numbered().test_dataloader()) == list(range(100, 120))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 1}, "dataset.limit=1: must be 2 or more"),
        ({"num_classes": 7}, "dataset.num_classes=7, but Numbered has 2 classes"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Numbered(**options)


def test_each_image_is_flipped_and_cropped_by_its_own_draw():
    torch.manual_seed(0)
    image = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6)
    padded = torch.zeros(1, 10, 10, dtype=torch.uint8)
    padded[0, 2:8, 2:8] = image
    possible = {
        crop.numpy().tobytes()
        for row in range(5)
        for column in range(5)
        for crop in (
            padded[:, row : row + 6, column : column + 6].contiguous(),
            padded[:, row : row + 6, column : column + 6].flip(2).contiguous(),
        )
    }
    changed = flip_and_crop(image.expand(2000, 1, 6, 6), padding=2)
    assert changed.dtype == torch.uint8 and changed.shape == (2000, 1, 6, 6)
    assert {one.contiguous().numpy().tobytes() for one in changed} == possible  # all 50, and no others


def test_channels_stay_together_when_cropped():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8).expand(16, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    changed = flip_and_crop(image, padding=2)
    torch.testing.assert_close(changed[:, 1], 2 * changed[:, 0])
    torch.testing.assert_close(changed[:, 2], 3 * changed[:, 0])


def test_standardised_by_channel():
    images = torch.ones(2, 3, 4, 4)
    found = standardise(images, [0.0, 0.5, 1.0], [1.0, 0.5, 2.0])
    assert found[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_processes_share_the_batches_of_an_epoch_in_turn():
    whole, first, second = (ShuffledBatches(40, 8, seed=3) for _ in range(3))
    for rank, part in enumerate((first, second)):
        part.num_replicas, part.rank = 2, rank
    for epoch in (0, 1):
        for batches in (whole, first, second):
            batches.set_epoch(epoch)
        order = [batch.tolist() for batch in whole]
        assert [batch.tolist() for batch in first] == order[0:4:2]
        assert [batch.tolist() for batch in second] == order[1:4:2]
        assert len(whole) == 5 and len(first) == len(second) == 2
