"""Tiny ImageNet, class folders and tables of labels, tested on small images made here."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from worstcase.data import ImageFolderDataModule, TinyImageNetDataModule


def write_image(path, level, size=64, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), level if mode == "L" else (level, level, level)).save(path)


@pytest.fixture
def tiny(tmp_path):
    place = tmp_path / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    for number, wnid in enumerate(sorted(wnids)):
        for index in range(4):
            write_image(place / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 50 * number)
    (place / "wnids.txt").write_text("\n".join(wnids))
    lines = []
    for number in range(6):
        write_image(
            place / "val" / "images" / f"val_{number}.JPEG", 40 * number, mode="L" if number == 1 else "RGB"
        )
        lines.append(f"val_{number}.JPEG\tn0{number % 3 + 1}\t0\t32\t44\t62")
    (place / "val" / "val_annotations.txt").write_text("\n".join(lines))
    return tmp_path


def test_tiny_imagenet_is_read_in_the_layout_of_its_archive(tiny):
    data = TinyImageNetDataModule(data_dir=str(tiny), augmented=False, val_fraction=0.25)
    data.prepare_data()
    images, labels = next(iter(data.test_dataloader()))
    assert labels.tolist() == [0, 1, 2, 0, 1, 2] and images.shape == (6, 3, 64, 64)
    grey = images[1] * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) + torch.tensor(
        [0.485, 0.456, 0.406]
    ).view(3, 1, 1)
    torch.testing.assert_close(grey, torch.full((3, 64, 64), 40 / 255), atol=0.01, rtol=0)
    train, train_labels = next(iter(data.train_dataloader()))
    assert len(train) == 9
    assert sorted(set(train_labels.tolist())) == [0, 1, 2]


def test_tiny_imagenet_with_another_layout_or_image_size_is_refused(tiny):
    write_image(tiny / "tiny-imagenet-200" / "val" / "images" / "val_3.JPEG", 9, size=32)
    with pytest.raises(ValueError, match=r"val_3.JPEG is not a 64x64 JPEG"):
        TinyImageNetDataModule(data_dir=str(tiny)).setup()
    (tiny / "tiny-imagenet-200" / "wnids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing wnids.txt\)"):
        TinyImageNetDataModule(data_dir=str(tiny)).prepare_data()


def test_tiny_imagenet_with_an_unknown_class_or_no_images_is_refused(tiny):
    table = tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    for line in ("val_0.JPEG\tn99\t0\t32\t44\t62", "val_0.JPEG"):
        table.write_text(line)
        with pytest.raises(
            ValueError, match=r"val_annotations.txt has a line 'val_0.JPEG.*' whose class is not in wnids"
        ):
            TinyImageNetDataModule(data_dir=str(tiny)).setup()
    table.write_text("")
    with pytest.raises(
        ValueError, match=r"val_annotations.txt has no image of the class n01; unpack the archive ag"
    ):
        TinyImageNetDataModule(data_dir=str(tiny)).setup()


def test_a_half_unpacked_tiny_imagenet_is_refused(tiny):
    shutil.rmtree(tiny / "tiny-imagenet-200" / "train" / "n02")
    with pytest.raises(ValueError, match="train has no image of the class n02; unpack the archive again"):
        TinyImageNetDataModule(data_dir=str(tiny)).setup()


@pytest.fixture
def folders(tmp_path):
    for part in ("train", "val"):
        for number, name in enumerate(["cat", "dog"]):
            for index in range(5):
                write_image(tmp_path / "pets" / part / name / f"{index}.png", 100 * number + index, size=20)
    return tmp_path


def pets(folders, **options):
    settings = {"num_classes": 2, "resize": None, "crop": 16, "num_workers": 0, "batch_size": 4}
    return ImageFolderDataModule(data_dir=str(folders), folder="pets", **{**settings, **options})


def test_class_folders_are_read_in_the_same_mixed_order_for_every_seed(folders):
    data = pets(folders)
    data.prepare_data()
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert sorted(labels.tolist()) == [0] * 5 + [1] * 5 and labels.tolist() != sorted(labels.tolist())
    assert all(images.shape[1:] == (3, 16, 16) for images, _ in data.test_dataloader())
    again = torch.cat([labels for _, labels in pets(folders, seed=5).test_dataloader()])
    assert torch.equal(labels, again)
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 9
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 1


def test_a_test_split_too_large_to_keep_is_read_batch_by_batch(folders, monkeypatch):
    kept = torch.cat([images for images, _ in pets(folders).test_dataloader()])
    monkeypatch.setattr("worstcase.data.imagefolder.KEPT_BYTES", 0)
    read = torch.cat([images for images, _ in pets(folders).test_dataloader()])
    assert torch.equal(kept, read)


def level_of(loader):
    """The blue of each image, which is equal throughout."""
    return {image[2].max().item() for images, _ in loader for image in images}


def test_val_is_for_validation_where_there_is_a_test_folder_too(folders):
    before = pets(folders)
    write_image(folders / "pets" / "test" / "0.png", 9, size=20)  # ImageNet's, without labels
    assert level_of(pets(folders).test_dataloader()) == level_of(before.test_dataloader())
    assert sum(len(labels) for _, labels in pets(folders).val_dataloader()) == 1
    for name in ("cat", "dog"):
        write_image(folders / "pets" / "test" / name / "0.png", 50, size=20)
    data = pets(folders)
    assert len(level_of(data.test_dataloader())) == 1
    assert level_of(data.val_dataloader()) == level_of(before.test_dataloader())
    assert sum(len(labels) for _, labels in data.train_dataloader()) == 10
    assert sum(len(labels) for _, labels in pets(folders, limit=6).train_dataloader()) == 6
    assert sum(len(labels) for _, labels in pets(folders, limit=6).val_dataloader()) == 6
    (folders / "pets" / "val" / "cat").rename(folders / "pets" / "val" / "eel")
    with pytest.raises(ValueError, match=r"only .*test has cat; only .*val has eel"):
        pets(folders).setup()


def test_a_table_of_labels_replaces_the_test_folders(tmp_path):
    lines = ["file,label,other"]
    for number in range(3):
        write_image(tmp_path / "pets" / "images" / f"{number}.png", 0, size=20)
        lines.append(f"{number}.png,{number * 2},x")
    table = tmp_path / "pets" / "labels.csv"
    table.write_text("\n".join(lines))
    data = pets(tmp_path, num_classes=5)
    (_, labels), *_ = data.test_dataloader()
    assert sorted(labels.tolist()) == [0, 2, 4]
    with pytest.raises(FileNotFoundError, match="this data is for evaluation"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"num_classes=4, but .*labels.csv has label 4"):
        pets(tmp_path, num_classes=4).setup()
    table.write_text("file,label\n9.png,0\n")
    with pytest.raises(FileNotFoundError, match=r"lists 9.png, which is not in"):
        pets(tmp_path).setup()
    table.write_text("name,label\n0.png,0\n")
    with pytest.raises(ValueError, match="needs columns file and label"):
        pets(tmp_path).setup()


@pytest.mark.parametrize("names", [range(11), range(1, 3), ["00", "02"]])
def test_folders_of_numbers_that_are_not_the_labels_of_the_table_are_refused(tmp_path, names):
    write_image(tmp_path / "pets" / "images" / "0.png", 0, size=20)
    (tmp_path / "pets" / "labels.csv").write_text("file,label\n0.png,1\n")
    for name in names:
        write_image(tmp_path / "pets" / "train" / str(name) / "0.png", 0, size=20)
    with pytest.raises(ValueError, match=r"they are not the labels of labels.csv; name them"):
        pets(tmp_path, num_classes=len(names)).setup()


def test_missing_folders_or_a_wrong_number_of_classes_are_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"it needs val/CLASS/\*"):
        pets(tmp_path / "none").prepare_data()
    with pytest.raises(ValueError, match=r"num_classes=3, but .*val has 2 classes"):
        pets(folders, num_classes=3).setup()
    write_image(folders / "pets" / "train" / "bird" / "0.png", 0)
    with pytest.raises(ValueError, match=r"num_classes=2, but .*train has 3 classes"):
        pets(folders).train_dataloader()
    with pytest.raises(ValueError, match=r"set num_classes="):
        pets(folders, num_classes=None)


def test_test_classes_that_differ_from_the_training_classes_are_refused(folders):
    """There are as many, but their labels would mean other classes."""
    (folders / "pets" / "train" / "cat").rename(folders / "pets" / "train" / "eel")
    message = r"the classes differ: only .*val has cat; only .*train has eel; give both the same class folders"
    with pytest.raises(ValueError, match=message):
        pets(folders).setup()
    data = pets(folders)
    for _ in range(2):  # also when asked again
        with pytest.raises(ValueError, match="the classes differ"):
            data.test_dataloader()


def test_class_folders_are_compared_by_name_without_reading_images(folders, monkeypatch):
    data = pets(folders)
    looked = []
    whole = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: looked.append(path.name) or whole(path))
    data.setup()
    assert looked == ["val", "train"]


def test_a_class_folder_without_images_is_named(folders):
    for image in (folders / "pets" / "val" / "cat").iterdir():
        image.unlink()
    with pytest.raises(FileNotFoundError, match=r"pets/val: .*cat"):
        pets(folders).setup()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"labels.csv lists no images; it needs the header file,label and a line for each image"),
        ("file,label\n", "labels.csv lists no images"),
        ("file,label\n0.png,-1\n", "labels.csv has label -1 for 0.png; labels are 0 to 1"),
        ("file,label\n0.png,1\n0.png,2\n", "labels.csv has label 2 for 0.png; labels are 0 to 1"),
        ("file,label\n0.png\n", "labels.csv needs columns file and label"),
        ("file,label\n0.png,cat\n", "labels.csv needs columns file and label, with labels 0, 1, ...: .*'cat'"),
        ("file,label\n0.png,\xff\n", "labels.csv needs columns file and label"),
    ],
)
def test_tables_with_bad_lines_are_refused(table, message, tmp_path):
    write_image(tmp_path / "pets" / "images" / "0.png", 0, size=20)
    (tmp_path / "pets" / "labels.csv").write_text(table, encoding="latin1")
    with pytest.raises(ValueError, match=message) as error:
        pets(tmp_path).setup()
    assert "\n" not in str(error.value)


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path):
    write_image(tmp_path / "pets" / "images" / "0.png", 0, size=20)
    (tmp_path / "pets" / "labels.csv").write_text("file,label\r\n0.png,1\r\n", encoding="utf-8-sig")
    assert [labels.tolist() for _, labels in pets(tmp_path).test_dataloader()] == [[1]]


@pytest.mark.parametrize("kind", ["no image", "truncated", "empty"])
@pytest.mark.parametrize("layout", ["folders", "table"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_in_one_line(kind, layout, num_workers, folders):
    broken = folders / "pets" / "val" / "cat" / "2.png"
    if layout == "table":
        broken = folders / "pets" / "images" / "2.png"
        write_image(broken, 0, size=20)
        shutil.rmtree(folders / "pets" / "val")
        (folders / "pets" / "labels.csv").write_text("file,label\n2.png,0\n")
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(broken)
    content = {"no image": b"text", "truncated": broken.read_bytes()[:-400], "empty": b""}
    broken.write_bytes(content[kind])
    with pytest.raises(ValueError, match="cannot read the image") as error:
        pets(folders, num_workers=num_workers).test_dataloader()
    last = str(error.value).strip().splitlines()[-1]
    assert f"cannot read the image {broken}: " in last
    assert len(str(error.value).splitlines()) == 1 or num_workers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "crop=0: must be 1 or more"),
        ({"crop": 16.0}, r"crop=16\.0: must be a whole number, 1 or more"),
        ({"resize": 0}, "resize=0: must be 1 or more, or null for no scaling"),
        ({"resize": "big"}, "resize='big': must be a whole number, 1 or more, or null"),
        ({"num_workers": -1}, "num_workers=-1: must be 0 or more"),
        ({"num_workers": True}, "num_workers=True: must be a whole number, 0 or more"),
        ({"num_classes": 1}, "num_classes=1: must be 2 or more"),
    ],
)
def test_settings_out_of_range_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pets(tmp_path, **options)
