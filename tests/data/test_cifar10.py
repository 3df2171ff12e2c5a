"""CIFAR-10's file format, with small files in place of the real ones."""

import hashlib
import pickle
from functools import partial

import numpy as np
import pytest
import torch

from worstcase.data import CIFAR10DataModule, ImageFolderDataModule, cifar10


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six files of twenty images each, and their digests in place of CIFAR-10's."""
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    rng = np.random.default_rng(0)
    digests = {}
    for name in cifar10.PIXELS:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [int(n) for n in rng.integers(0, 10, 20)], "filenames": ["a"] * 20}
        (place / name).write_bytes(pickle.dumps(content, protocol=2))
        digests[name] = hashlib.md5(pixels.tobytes()).hexdigest()
    monkeypatch.setattr(cifar10, "PIXELS", digests)
    return place


def test_images_and_labels_are_read_and_standardised(folder):
    data = CIFAR10DataModule(data_dir=str(folder.parent), batch_size=8)
    data.prepare_data()
    images, labels = next(iter(data.test_dataloader()))
    content = pickle.loads((folder / "test_batch").read_bytes())
    assert labels.tolist() == content["labels"][:8]
    red = content["data"][0].reshape(3, 32, 32)[0, 5, 7] / 255
    assert images.shape == (8, 3, 32, 32)
    assert images[0, 0, 5, 7].item() == pytest.approx((red - 0.4914) / 0.2470, abs=1e-5)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 90
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 10


def test_only_training_images_are_augmented(folder):
    plain, augmented = (CIFAR10DataModule(data_dir=str(folder.parent), augmented=a) for a in (False, True))
    first, second = (next(iter(data.train_dataloader()))[0] for data in (plain, augmented))
    assert not torch.equal(first, second)
    assert torch.equal(next(iter(plain.val_dataloader()))[0], next(iter(augmented.val_dataloader()))[0])


def test_changed_pixels_are_refused_and_a_repacked_file_is_not(folder):
    content = pickle.loads((folder / "data_batch_3").read_bytes())
    (folder / "data_batch_3").write_bytes(pickle.dumps(content, protocol=4))  # repacking is fine
    CIFAR10DataModule(data_dir=str(folder.parent)).setup()
    content["data"][3, 99] ^= 1
    (folder / "data_batch_3").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"the pixels in .*data_batch_3 are not CIFAR-10's"):
        CIFAR10DataModule(data_dir=str(folder.parent)).setup()


@pytest.mark.parametrize("content", [b"", b"\x80\x04text", pickle.dumps([1, 2]), pickle.dumps(Harmful())])
def test_a_file_that_is_not_a_batch_is_refused_and_not_executed(folder, content, capsys):
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*test_batch"):
        CIFAR10DataModule(data_dir=str(folder.parent)).setup()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, r"mean=\[0\.5\]: must be 3 finite numbers, one for each channel"),
        ({"mean": [0.5, 0.5, float("nan")]}, "must be 3 finite numbers, one for each channel"),
        ({"mean": 0.5}, r"mean=0\.5: must be 3 finite numbers"),
        ({"mean": "abc"}, "mean=abc: must be 3 finite numbers"),
        (
            {"std": [0.2, 0.0, 0.2]},
            r"std=\[0\.2, 0\.0, 0\.2\]: must be 3 finite numbers above 0, one for each channel",
        ),
        ({"std": [0.2, 0.2, -0.2]}, "must be 3 finite numbers above 0"),
        ({"std": [0.2, 0.2, 0.2, 0.2]}, "must be 3 finite numbers above 0"),
        ({"std": [0.2, 0.2, float("inf")]}, "must be 3 finite numbers above 0"),
    ],
)
@pytest.mark.parametrize(
    "data",
    [CIFAR10DataModule, partial(ImageFolderDataModule, folder="pets", num_classes=2)],
    ids=["cifar", "folder"],
)
def test_mean_and_std_must_be_three_numbers_each(data, options, message):
    with pytest.raises(ValueError, match=message):
        data(data_dir="nowhere", **options)


def test_labels_out_of_range_or_not_one_per_image_are_refused(folder):
    content = pickle.loads((folder / "test_batch").read_bytes())
    for labels, message in ((content["labels"][:-1], "20 samples, but 19 labels"), ([10] * 20, "has label 10")):
        (folder / "test_batch").write_bytes(pickle.dumps(content | {"labels": labels}, protocol=2))
        with pytest.raises(ValueError, match=f"test data of CIFAR10DataModule .*{message}"):
            CIFAR10DataModule(data_dir=str(folder.parent)).setup()


def test_missing_files_are_named_and_the_message_says_what_to_do(folder):
    (folder / "data_batch_2").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing data_batch_2\); set data_dir=FOLDER .*download=True"):
        CIFAR10DataModule(data_dir=str(folder.parent)).prepare_data()
