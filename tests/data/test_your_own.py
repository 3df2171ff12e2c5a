"""Data of the user: arrays, time series, grey and n-channel images, and what a function returns."""

import shutil
import sys
import types

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from worstcase.data import ArraysDataModule, ImageFolderDataModule, OwnDataModule, TimeSeriesDataModule
from worstcase.digests import digest_of_files

# ---- arrays


def parts(count=40):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 3, 3), np.uint8)
    return images, np.arange(count) % 4


def numbers(loader):
    return [round(255 * float(image.flatten()[0])) for images, _ in loader for image in images]


def save(file, content):
    if file.suffix == ".npz":
        np.savez(file, **content)
    else:
        torch.save({name: torch.from_numpy(value) for name, value in content.items()}, file)
    return str(file)


@pytest.mark.parametrize("suffix", ["npz", "pt", "pth"])
@pytest.mark.parametrize("names", ["{}_inputs {}_labels", "x_{} y_{}", "{}_images {}_labels"])
def test_arrays_are_read_and_split_by_seed(tmp_path, suffix, names):
    x, y = parts()
    content = {}
    for part, size in (("train", 40), ("test", 12)):
        of_inputs, of_labels = names.replace("{}", part).split()
        content |= {of_inputs: x[:size], of_labels: y[:size, None]}
    file = save(tmp_path / f"data.{suffix}", content)
    data = ArraysDataModule(file=file, num_classes=4, batch_size=5, val_fraction=0.25)
    assert numbers(data.test_dataloader()) == list(range(12))
    train, val = numbers(data.train_dataloader()), numbers(data.val_dataloader())
    assert sorted(train + val) == list(range(40)) and len(val) == 10
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (5, 2, 3, 3) and images.dtype == torch.float32 and labels.tolist() == [0, 1, 2, 3, 0]
    assert numbers(data.test_dataloader()) == list(range(12)), "again"


def test_test_data_alone_and_validation_data_of_their_own(tmp_path):
    x, y = parts()
    alone = ArraysDataModule(file=save(tmp_path / "a.npz", {"inputs": x, "labels": y}), num_classes=4, limit=7)
    assert len(numbers(alone.test_dataloader())) == 7
    with pytest.raises(FileNotFoundError, match="this data is for evaluation only"):
        alone.train_dataloader()
    three = {
        f"{part}_{kind}": values
        for part in ("train", "val", "test")
        for kind, values in (("inputs", x), ("labels", y))
    }
    three["val_inputs"], three["val_labels"] = x[:3], y[:3]
    own = ArraysDataModule(file=save(tmp_path / "b.npz", three), num_classes=4)
    assert numbers(own.val_dataloader()) == [0, 1, 2] and len(numbers(own.train_dataloader())) == 40


@pytest.mark.parametrize(
    ("dtype", "expected"), [(np.float64, torch.float32), (np.float16, torch.float32), (np.int64, torch.int64)]
)
def test_other_numbers_than_bytes_keep_their_values(tmp_path, dtype, expected):
    content = {"inputs": np.array([[3, 200]], dtype), "labels": np.array([1])}
    data = ArraysDataModule(file=save(tmp_path / "a.npz", content), num_classes=2)
    ((inputs, _),) = data.test_dataloader()
    assert inputs.dtype == expected and inputs.tolist() == [[3, 200]]


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inputs": "x"}, r"has inputs; it needs test_inputs and test_labels"),
        ({"test_inputs": "x"}, "has test_inputs, but no test_labels"),
        ({"test_inputs": "x", "x_test": "x", "y_test": "y"}, "has both test_inputs and x_test; keep one"),
        ({"inputs": "x", "labels": "short"}, "have 40 inputs and 39 labels"),
        ({"inputs": "x", "labels": "high"}, "has label 4 for sample 3, but labels must be 0 to 3"),
        ({"inputs": "one", "labels": "y"}, "must be arrays with an entry for each sample"),
        ({"inputs": "nan", "labels": "y"}, "have an input that is not finite"),
        (
            {"train_inputs": "other", "train_labels": "y", "test_inputs": "x", "test_labels": "y"},
            "not .* as those for",
        ),
        (
            {"train_inputs": "floats", "train_labels": "y", "test_inputs": "x", "test_labels": "y"},
            "inputs of different types, and uint8 alone become 0..1: floats in train, uint8 in test",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, content, message):
    x, y = parts()
    values = {
        "x": x,
        "y": y,
        "short": y[1:],
        "high": y + 1,
        "nan": x * np.nan,
        "floats": x.astype(np.float32),
        "one": np.array(1.0),
        "other": x[:, :1],
    }
    file = save(tmp_path / "a.npz", {name: values[what] for name, what in content.items()})
    with pytest.raises(ValueError, match=message):
        ArraysDataModule(file=file, num_classes=4).test_dataloader()


def test_a_file_of_arrays_is_never_executed(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", inputs=np.array([Harmful()], dtype=object), labels=np.array([0]))
    torch.save({"inputs": Harmful()}, tmp_path / "a.pt")
    torch.save([1], tmp_path / "b.pt")
    (tmp_path / "a.txt").write_text("x")
    for name in ("a.npz", "a.pt", "b.pt", "a.txt"):
        with pytest.raises(ValueError, match="cannot read the arrays") as error:
            ArraysDataModule(file=str(tmp_path / name), num_classes=2).test_dataloader()
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"no file .*none.npz; set file=FILE"):
        ArraysDataModule(file=str(tmp_path / "none.npz"), num_classes=2).prepare_data()


def test_data_that_changed_since_a_run_are_refused(tmp_path):
    x, y = parts()
    file = tmp_path / "a.npz"
    save(file, {"inputs": x, "labels": y})
    options = {"file": str(file), "digest": digest_of_files([file]), "num_classes": 4}
    ArraysDataModule(**options).prepare_data()
    save(file, {"inputs": x, "labels": y[::-1]})
    with pytest.raises(ValueError, match="not the data of this run, they have changed"):
        ArraysDataModule(**options).test_dataloader()


# ---- time series


def test_lines_of_a_table_are_samples_channel_after_channel(tmp_path):
    (tmp_path / "test.csv").write_text("label,a0,a1,b0,b1\n0,1,2,3,4\n\n1,5,6.5,-7,8e0\n")
    (tmp_path / "train.tsv").write_text("\n".join(f"{n % 2}\t{n}\t0\t0\t0" for n in range(20)))
    files = {"test": str(tmp_path / "test.csv"), "train": str(tmp_path / "train.tsv")}
    data = TimeSeriesDataModule(**files, channels=2, num_classes=2)
    ((inputs, labels),) = data.test_dataloader()
    assert inputs.tolist() == [[[1, 2], [3, 4]], [[5, 6.5], [-7, 8]]] and labels.tolist() == [0, 1]
    assert sum(len(y) for _, y in data.train_dataloader()) == 18 and len(next(iter(data.val_dataloader()))[1]) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line with a label and values"),
        ("label,a\n", "no line with a label and values"),
        ("0,1,2\n1,5\n", "line 2 has 2 numbers, but each line needs"),
        ("0\n", "line 1 has 1 numbers"),
        ("0,1\nmy secret,2\n", "line 2 holds something that is no number$"),
        ("0,1\n0,\n", "line 2 holds something that is no number$"),
        ("0,nan\n", "line 1 has a number that is not finite"),
        ("0.5,1\n", "line 1 has a label, its first number, that is not whole"),
        ("2,1\n", "has label 2 for sample 0, but labels must be 0 to 1"),
        ("0,1,2,3\n", "3 values of a line are no multiple of channels=2"),
    ],
)
def test_a_table_that_is_wrong_is_refused_without_what_it_holds(tmp_path, text, message):
    (tmp_path / "test.csv").write_text(text)
    channels = 2 if "channels" in message else 1
    with pytest.raises(ValueError, match=message) as error:
        TimeSeriesDataModule(test=str(tmp_path / "test.csv"), channels=channels, num_classes=2).test_dataloader()
    assert "secret" not in str(error.value)


# ---- images


@pytest.fixture
def images(tmp_path):
    """Two classes, each with an image of uniform grey level 51."""
    for label in "ab":
        place = tmp_path / "grey" / "val" / label
        place.mkdir(parents=True)
        Image.fromarray(np.full((12, 10), 51, np.uint8)).save(place / "0.png")
    return tmp_path / "grey" / "val" / "a"


def folder(images, **options):
    options = {"mean": [0.0], "std": [1.0], "channels": 1, "resize": None, "crop": 8, "num_workers": 0} | options
    return ImageFolderDataModule(data_dir=str(images.parents[2]), folder="grey", num_classes=2, **options)


def level(images, **options):
    batch = torch.cat([x for x, _ in folder(images, **options).test_dataloader()])
    assert batch.shape[1:] == (options.get("channels", 1), 8, 8)
    return sorted({round(float(value), 3) for value in batch.unique()})


def test_grey_images_have_one_channel(images):
    Image.fromarray(np.full((12, 10, 3), 51, np.uint8)).save(images / "colour.png")
    assert level(images) == [0.2]
    assert level(images, mean=[0.1], std=[0.5]) == [0.2]  # (0.2 - 0.1) / 0.5


def test_sixteen_bits_are_not_cut_to_eight(images):
    """PIL's own conversion makes 255 of every level above 255."""
    Image.fromarray(np.full((12, 10), 13107, np.uint16)).save(images / "16.png")
    np.save(images / "16.npy", np.full((12, 10), 13107, np.uint16))
    assert level(images) == [0.2]
    with pytest.raises(ValueError, match=r"cannot read the image .*16\..*: its shape is \(12, 10, 1\), not"):
        folder(images, channels=3, mean=[0.0] * 3, std=[1.0] * 3).test_dataloader()


def test_images_of_any_number_of_channels(images):
    shutil.rmtree(images.parent)
    for label in "ab":
        (images.parent / label).mkdir(parents=True)
        np.save(images.parent / label / "0.npy", np.full((12, 10, 5), 0.2, np.float32))
    assert level(images, channels=5, mean=[0.0] * 5, std=[1.0] * 5) == [0.2]
    for label in "ab":
        (images.parent / label / "0.npy").unlink()
        Image.fromarray(np.full((12, 10, 4), 51, np.uint8)).save(images.parent / label / "0.png")
    assert level(images, channels=4, mean=[0.0] * 4, std=[1.0] * 4) == [0.2]
    with pytest.raises(ValueError, match="it has 4 channels, not 2"):
        folder(images, channels=2, mean=[0.0] * 2, std=[1.0] * 2).test_dataloader()


def test_mean_and_deviation_have_a_number_for_each_channel(images):
    with pytest.raises(ValueError, match=r"mean=.*: must be 1 finite numbers, one for each channel"):
        folder(images, mean=[0.5, 0.5, 0.5])


# ---- a function of the user


class Tokens(Dataset):
    """Samples as dicts, drawn at random where it is asked for."""

    def __init__(self, size, noise=0.0):
        self.size, self.noise = size, noise

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        x = torch.tensor([float(index)]) + self.noise * torch.randn(1)
        return {"x": x, "labels": index % 2}


class Module(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.stages = []

    def setup(self, stage):
        self.stages.append(stage)

    def train_dataloader(self):
        return DataLoader(Tokens(8), batch_size=4)

    def test_dataloader(self):
        return DataLoader(Tokens(6), batch_size=4, shuffle=True)


class Hooked(Module):
    def on_after_batch_transfer(self, batch, index):
        return batch


@pytest.fixture
def mine(monkeypatch):
    module = types.ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)

    def own(made, **options):
        module.data = made if callable(made) else lambda: made
        return OwnDataModule(of="mine:data", num_classes=2, **options)

    return own


def test_a_pair_of_data_sets_is_split_and_batched(mine):
    data = mine((Tokens(20), Tokens(7)), batch_size=3, val_fraction=0.25)
    assert [batch["x"].flatten().tolist() for batch in data.test_dataloader()] == [[0, 1, 2], [3, 4, 5], [6]]
    assert sum(len(batch["labels"]) for batch in data.train_dataloader()) == 15
    assert sum(len(batch["labels"]) for batch in data.val_dataloader()) == 5
    three = mine((Tokens(20), Tokens(4), Tokens(7)))
    assert sum(len(batch["labels"]) for batch in three.train_dataloader()) == 20
    assert sum(len(batch["labels"]) for batch in three.val_dataloader()) == 4
    with pytest.raises(FileNotFoundError, match="for evaluation only"):
        mine((None, Tokens(7))).train_dataloader()


def test_a_test_set_that_draws_is_the_same_in_each_pass(mine, monkeypatch):
    for kept in (2**31, 0):
        monkeypatch.setattr("worstcase.data.base.KEPT_BYTES", kept)
        data = mine((None, Tokens(7, noise=1.0)))
        first, second = ([batch["x"].tolist() for batch in data.test_dataloader()] for _ in range(2))
        assert first == second


def test_a_lightning_module_gives_its_own_loaders_and_is_set_up_once_for_each_stage(mine):
    made = Module()
    data = mine(lambda: made)
    for _ in range(2):
        assert sum(len(batch["labels"]) for batch in data.test_dataloader()) == 6
    assert made.stages == ["test"]
    data.train_dataloader()
    assert made.stages == ["test", "fit"]
    with pytest.raises(FileNotFoundError, match="Module has no val_dataloader"):
        data.val_dataloader()


def test_processes_that_train_together_do_not_all_take_the_same_batches(mine, monkeypatch):
    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(f"worstcase.data.own.distributed.{name}", lambda value=value: value)
    with pytest.raises(ValueError, match="several processes train, so its loader needs a DistributedSampler"):
        mine(Module).train_dataloader()
    mine(Module).test_dataloader()


def test_the_digest_is_of_the_data_in_any_order_and_batches(mine):
    digest = mine((None, Tokens(6))).digest()
    assert digest == mine((None, Tokens(6)), batch_size=4).digest() == mine(Module).digest()
    assert digest != mine((None, Tokens(7))).digest()
    assert mine((None, TensorDataset(torch.zeros(3, 2, dtype=torch.bfloat16), torch.arange(3) % 2))).digest()


@pytest.mark.parametrize(
    ("made", "options", "message"),
    [
        (3, {}, "must return a LightningDataModule, or data sets: .*, not int"),
        ((Tokens(1),), {}, "must return a LightningDataModule"),
        ((Tokens(1), None), {}, "there are no test data"),
        ((None, iter([1])), {}, "has no length or no numbered samples"),
        (Hooked, {}, "Hooked.on_after_batch_transfer changes batches, .* do it in the data set"),
        (Module, {"batch_size": 3}, "makes its own batches: say neither batch_size= nor limit="),
        (Module, {"limit": 3}, "makes its own batches: say neither batch_size= nor limit="),
    ],
)
def test_what_a_function_returns_must_be_data(mine, made, options, message):
    with pytest.raises(ValueError, match=message):
        mine(made, **options)


def test_a_function_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="of=nowhere:data: must be module:callable that takes no arguments"):
        OwnDataModule(of="nowhere:data", num_classes=2)
