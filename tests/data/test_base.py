import pytest
import torch
from torch.utils.data import DataLoader

from worstcase.data import InMemoryDataModule
from worstcase.data.augmentation import flip_and_crop, standardise
from worstcase.data.drawn import BatchesOf, ShuffledBatches
from worstcase.seeds import drawing_by


class Numbered(InMemoryDataModule):
    """Forty training and twenty test images. The grey level of an image is its number."""

    num_classes = 2

    def load(self):
        def split(numbers):
            return numbers.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), numbers % 2

        return split(torch.arange(40)), split(torch.arange(100, 120))


def numbers(loader: DataLoader) -> list[int]:
    return [round(255 * image[0, 0, 0].item()) for images, _ in loader for image in images]


def test_a_limit_draws_training_images_by_seed_and_the_same_test_images_for_all():
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
        ({"limit": 1}, "limit=1: must be 2 or more, or null for all"),
        ({"limit": 10.0}, r"limit=10\.0: must be a whole number, 2 or more, or null for all"),
        ({"batch_size": 2.5}, r"batch_size=2\.5: must be a whole number, 1 or more"),
        ({"batch_size": True}, "batch_size=True: must be a whole number, 1 or more"),
        ({"val_fraction": "0.1"}, "val_fraction='0.1': must be a number, above 0 and below 1"),
        ({"val_fraction": float("nan")}, "val_fraction=nan: must be above 0 and below 1"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0 to"),
        ({"num_classes": 2.0}, r"num_classes=2\.0: must be a whole number, 2 or more"),
        ({"num_classes": 7}, "num_classes=7, but Numbered has 2 classes"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Numbered(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda images, labels: (images, labels - 1),
            "has label -1 for sample 0, but labels must be 0 to 1; correct",
        ),
        (
            lambda images, labels: (images, labels + 1),
            "has label 2 for sample 1, but labels must be 0 to 1; correct",
        ),
        (lambda images, labels: (images, labels[1:]), r"has \d+ samples, but \d+ labels; replace the data files"),
        (
            lambda images, labels: (images, labels[:, None]),
            r"has \d+ samples, but \d+ labels; replace the data files",
        ),
        (lambda images, labels: (images[:0], labels[:0]), "has no samples"),
    ],
)
@pytest.mark.parametrize(("part", "name"), [(0, "training"), (1, "test")])
def test_bad_labels_are_refused_with_the_name_of_their_data(part, name, change, message):
    class Wrong(Numbered):
        def load(self):
            splits = list(super().load())
            splits[part] = change(*splits[part])
            return splits

    with pytest.raises(ValueError, match=f"the {name} data of Wrong {message}"):
        Wrong().setup()


def test_fewer_batches_than_processes_are_refused(monkeypatch):
    assert len(Numbered(limit=2, batch_size=128).train_dataloader()) == 1
    with pytest.raises(ValueError, match=r"0 training images make 0 batches of 4, .* val_fraction="):
        Numbered(limit=10, batch_size=4, val_fraction=0.99).train_dataloader()
    for name, value in {"is_initialized": True, "get_world_size": 3, "get_rank": 0}.items():
        monkeypatch.setattr(f"worstcase.data.drawn.distributed.{name}", lambda value=value: value)
    assert len(Numbered(limit=10, batch_size=3).train_dataloader()) == 1
    message = (
        "9 training images make 2 batches of 5, but each of 3 processes needs one; "
        "raise limit=, or lower batch_size="
    )
    with pytest.raises(ValueError, match=message):
        Numbered(limit=10, batch_size=5).train_dataloader()


def test_each_image_has_its_own_random_flip_and_crop():
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


class Augmented(Numbered):
    def augment(self, images):
        return images + torch.randint(100, (len(images), 1, 1, 1), dtype=torch.uint8)


class Drawing:
    """Four samples of one random number each."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(1), 0


def drawing_samples(batch_size, num_workers=0):
    data = BatchesOf(Drawing(), torch.arange(4), seed=0)
    return DataLoader(data, sampler=data.shuffled(batch_size), batch_size=None, num_workers=num_workers)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Augmented(limit=5, batch_size=1).train_dataloader(),
        lambda: drawing_samples(1),
        lambda: drawing_samples(1, num_workers=1),
    ],
)
def test_alone_in_a_batch_a_sample_is_drawn_anew_in_each_epoch_and_alike_in_a_resumed_one(made):
    loader = made()

    def drawn(epoch):
        loader.sampler.set_epoch(epoch)
        return {inputs.flatten()[0].item() for inputs, _ in loader}

    first, second = drawn(0), drawn(1)
    assert not first & second and drawn(0) == first


def test_what_larger_batches_draw_depends_on_the_seed_and_the_positions_alone():
    loader = drawing_samples(2)
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        for positions, (inputs, _) in zip(loader.sampler, loader, strict=True):
            with drawing_by(0, positions.tolist()):
                assert torch.equal(inputs, torch.rand(2, 1))


def test_channels_stay_together_when_cropped():
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8).expand(16, 3, 8, 8) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    changed = flip_and_crop(image, padding=2)
    torch.testing.assert_close(changed[:, 1], 2 * changed[:, 0])
    torch.testing.assert_close(changed[:, 2], 3 * changed[:, 0])


def test_each_channel_is_standardised():
    images = torch.ones(2, 3, 4, 4)
    found = standardise(images, [0.0, 0.5, 1.0], [1.0, 0.5, 2.0])
    assert found[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_processes_take_the_batches_of_an_epoch_in_turn():
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


@pytest.mark.parametrize(
    ("size", "batch_size", "sizes"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (3, 2, [3])],
)
def test_a_last_sample_alone_joins_the_batch_before(size, batch_size, sizes):
    batches = ShuffledBatches(size, batch_size, seed=0)
    assert [len(batch) for batch in batches] == sizes and len(batches) == len(sizes)


def test_batches_are_made_where_the_data_module_is_told():
    data = Numbered(batch_size=8)
    data.device = "meta"  # mixing it with tensors elsewhere is an error
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert all(images.device.type == labels.device.type == "meta" for images, labels in loader)
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert standardise(flip_and_crop(images, 2).float(), [0.5] * 3, [0.2] * 3).device.type == "meta"


def test_what_is_too_large_for_a_gpu_stays_on_the_host(monkeypatch):
    monkeypatch.setattr("worstcase.data.base.KEPT_BYTES", 100)
    data = Numbered(batch_size=8)
    data.device = "meta"
    assert all(images.device.type == "cpu" for images, _ in data.train_dataloader())
