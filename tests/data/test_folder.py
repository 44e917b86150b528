"""Image folders."""

import numpy as np
import pytest
from PIL import Image

from nasjax.data import DataError, DataNotFoundError, RecordSource, evaluation_batches, load


def _write(root, part, name, files):
    folder = root / part / name
    folder.mkdir(parents=True)
    for file, (width, height), colour in files:
        Image.new("RGB", (width, height), colour).save(folder / file)


@pytest.fixture
def pets(tmp_path):
    """Dogs are red, cats are green; sizes differ."""
    _write(tmp_path, "train", "dog", [("a.png", (12, 8), "red"), ("b.PNG", (8, 8), "red")])
    _write(tmp_path, "train", "cat", [("a.png", (8, 20), "lime")])
    _write(tmp_path, "val", "dog", [("z.jpg", (16, 16), "red"), ("note.txt.png", (9, 9), "red")])
    (tmp_path / "train" / "dog" / "note.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_folder_is_cropped_and_numbered_by_class_name(pets):
    dataset = load(f"folder:{pets}", image_size=8)
    assert (dataset.num_classes, dataset.image_shape) == (2, (8, 8, 3))
    np.testing.assert_array_equal(dataset.train.labels, [0, 1, 1])
    np.testing.assert_array_equal(dataset.test.labels, [1, 1])
    np.testing.assert_array_equal(dataset.train.images[0, 0, 0], [0, 255, 0])
    np.testing.assert_array_equal(dataset.train.images[1, 0, 0], [255, 0, 0])


def test_center_crop_takes_the_middle(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200
    for part in ("train", "test"):
        (tmp_path / part / "x").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / part / "x" / "0.png")
    dataset = load(f"folder:{tmp_path}", image_size=4)
    assert (dataset.train.images == 200).all()


def test_grey_folder(pets):
    dataset = load(f"folder:{pets}", image_size=6, channels=1)
    assert dataset.image_shape == (6, 6, 1)


def test_folder_left_on_disk_gives_the_same_examples(pets):
    lazy = load(f"folder:{pets}", image_size=8, in_memory=False)
    assert isinstance(lazy.train, RecordSource)
    assert lazy.image_shape == (8, 8, 3)
    (batch,) = evaluation_batches(lazy.train, 3, image_size=8)
    eager = load(f"folder:{pets}", image_size=8)
    np.testing.assert_array_equal(batch["label"], eager.train.labels)
    np.testing.assert_array_equal(batch["image"], eager.train.images)


def test_one_shape_needs_no_size(tmp_path):
    for part in ("train", "test"):
        _write(tmp_path, part, "x", [("0.png", (5, 4), "red"), ("1.png", (5, 4), "blue")])
    assert load(f"folder:{tmp_path}").image_shape == (4, 5, 3)


def test_folder_refuses(pets, tmp_path):
    with pytest.raises(DataError, match=r"images differ in shape.*give image_size=PIXELS"):
        load(f"folder:{pets}")
    with pytest.raises(DataError, match=r"read from disk .* give image_size=PIXELS"):
        load(f"folder:{pets}", in_memory=False)
    with pytest.raises(DataError, match=r"image_size is 0, but a number of pixels from 1"):
        load(f"folder:{pets}", image_size=0)
    with pytest.raises(DataNotFoundError, match=r"There is no folder train in .*nowhere"):
        load(f"folder:{pets}/nowhere")
    with pytest.raises(DataNotFoundError, match=r"There are no class folders in"):
        (tmp_path / "e" / "train").mkdir(parents=True)
        (tmp_path / "e" / "test").mkdir()
        load(f"folder:{tmp_path}/e")
    with pytest.raises(DataNotFoundError, match=r"There are no .png, .jpg or .jpeg images"):
        (tmp_path / "e" / "train" / "empty").mkdir()
        load(f"folder:{tmp_path}/e")
    with pytest.raises(DataNotFoundError, match=r"There is no folder test or val"):
        (tmp_path / "f" / "train").mkdir(parents=True)
        load(f"folder:{tmp_path}/f")


def test_unknown_test_class_is_refused(pets):
    _write(pets, "val", "bird", [("a.png", (8, 8), "blue")])
    with pytest.raises(DataError, match=r"class 'bird' in .* not among .* \(cat, dog\): rename"):
        load(f"folder:{pets}", image_size=8)


def test_broken_image_is_refused(pets):
    (pets / "train" / "cat" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"8 bytes of a record's image cannot be decoded"):
        load(f"folder:{pets}", image_size=8)
