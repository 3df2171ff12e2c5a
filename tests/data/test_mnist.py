import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from worstcase.data import MNIST5k, MNISTDataModule
from worstcase.data.drawn import ShuffledBatches


@pytest.fixture(scope="module")
def digits():
    data = MNIST5k(seed=0)
    data.setup()
    return data


def gathered(loader):
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def keys(images):
    return {image.numpy().tobytes() for image in images}


def test_mnist5k_has_the_same_stratified_test_split_for_every_seed(digits):
    images, labels = gathered(digits.test_dataloader())
    assert images.shape == (1000, 1, 28, 28) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.bincount().tolist() == [100] * 10
    assert labels[:20].tolist() == [*range(10), *range(10)]  # mixed: an attack's mini-batch sees every class
    other = MNIST5k(seed=7)
    assert torch.equal(gathered(other.test_dataloader())[0], images)


def test_mnist5k_draws_validation_by_seed_and_no_splits_overlap(digits):
    parts = [gathered(loader()) for loader in (digits.train_dataloader, digits.val_dataloader)]
    assert [len(labels) for _, labels in parts] == [3600, 400]
    train, val, test = (
        keys(images)
        for images in (
            parts[0][0],
            parts[1][0],
            next(zip(*[gathered(digits.test_dataloader())], strict=True))[0],
        )
    )
    assert not train & val and not train & test and not val & test
    other = MNIST5k(seed=1)
    assert keys(gathered(other.val_dataloader())[0]) != val


def test_mnist5k_holds_real_digits(digits):
    """The nearest class mean is right for most digits, so images and labels belong together."""
    train, labels = gathered(digits.train_dataloader())
    means = torch.stack([train[labels == digit].mean(0) for digit in range(10)]).flatten(1)
    test, truth = gathered(digits.test_dataloader())
    read = torch.cdist(test.flatten(1), means).argmin(1)
    assert (read == truth).float().mean() > 0.75


def test_only_the_seed_and_the_epoch_decide_the_order():
    batches = ShuffledBatches(10, 4, seed=3)
    first, again = list(batches), list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2] and len(batches) == 3
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert torch.cat(first).sort().values.tolist() == list(range(10))
    batches.set_epoch(1)
    assert not torch.equal(torch.cat(first), torch.cat(list(batches)))
    assert not torch.equal(torch.cat(first), torch.cat(list(ShuffledBatches(10, 4, seed=4))))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size=0: must be 1 or more"), ({"val_fraction": 1.0}, "above 0 and below 1")],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MNIST5k(**options)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_whole_mnist_is_read_in_torchvisions_layout(tmp_path, digits):
    """A small MNIST in the original file format, made of real digits."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = gathered(digits.test_dataloader())
    pixels = (images[:, 0] * 255).round().numpy()
    for part, chosen in {"train": slice(0, 200), "t10k": slice(200, 300)}.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels[chosen].numpy())
    data = MNISTDataModule(data_dir=str(tmp_path), batch_size=64)
    data.prepare_data()
    test, truth = gathered(data.test_dataloader())
    assert torch.equal(truth, labels[200:300])
    torch.testing.assert_close(test, images[200:300])
    assert len(gathered(data.train_dataloader())[1]) == 180


def test_mnist_with_labels_out_of_range_or_not_one_per_image_is_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for level, part in enumerate(("train", "t10k")):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.full((20, 28, 28), level))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    MNISTDataModule(data_dir=str(tmp_path)).setup()
    write_idx(raw / "t10k-labels-idx1-ubyte", np.arange(19) % 10)
    with pytest.raises(ValueError, match="test data of MNISTDataModule has 20 samples, but 19 labels"):
        MNISTDataModule(data_dir=str(tmp_path)).setup()
    write_idx(raw / "train-labels-idx1-ubyte", np.arange(20) % 11)
    with pytest.raises(ValueError, match="training data of MNISTDataModule has label 10 for sample 10"):
        MNISTDataModule(data_dir=str(tmp_path)).setup()


def test_the_message_for_missing_mnist_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"set data_dir=FOLDER .* download=True"):
        MNISTDataModule(data_dir=str(tmp_path)).prepare_data()


def test_truncated_mnist_is_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(gzip.compress(b"no images"))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match=f"cannot read the MNIST files below {tmp_path}"):
        MNISTDataModule(data_dir=str(tmp_path)).prepare_data()


@pytest.mark.parametrize("download", [False, True])
def test_mnist_that_is_cut_within_its_pixels_is_not_called_missing(download, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((20, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    file = raw / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=f"cannot read the MNIST files below {tmp_path}: they are truncated"):
        MNISTDataModule(data_dir=str(tmp_path), download=download).prepare_data()


def test_mnist_whose_test_images_are_the_training_images_is_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.zeros((20, 28, 28)))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    with pytest.raises(ValueError, match=f"training and test images of MNIST below {tmp_path} are the same"):
        MNISTDataModule(data_dir=str(tmp_path)).setup()
