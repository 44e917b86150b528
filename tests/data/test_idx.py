"""The files of MNIST."""

import gzip
import struct

import numpy as np
import pytest

from nasjax.data import DataError, DataNotFoundError, load

RNG = np.random.RandomState(0)
X, Y = RNG.randint(0, 256, (7, 4, 5)).astype(np.uint8), np.array([0, 3, 1, 2, 3, 0, 1], np.uint8)
XT, YT = RNG.randint(0, 256, (3, 4, 5)).astype(np.uint8), np.array([2, 2, 0], np.uint8)
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def _write(folder, rename=lambda name: name, pack=lambda data: data):
    folder.mkdir(exist_ok=True)
    for name, array in zip(NAMES, (X, Y, XT, YT), strict=True):
        (folder / rename(name)).write_bytes(pack(_idx(array)))
    return folder


@pytest.fixture
def mnist(tmp_path):
    return _write(tmp_path / "mnist")


def _check(dataset):
    np.testing.assert_array_equal(dataset.train.images, X[..., None])
    np.testing.assert_array_equal(dataset.train.labels, Y)
    np.testing.assert_array_equal(dataset.test.images, XT[..., None])
    np.testing.assert_array_equal(dataset.test.labels, YT)


def test_files_as_published(mnist):
    dataset = load(f"idx:{mnist}")
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("mnist", 4, (4, 5, 1))
    _check(dataset)
    np.testing.assert_allclose(dataset.mean, X.mean() / 255)
    assert load(f"idx:{mnist}", mean=(0.5,), std=(0.25,)).mean == (0.5,)


@pytest.mark.parametrize(
    ("rename", "pack"),
    [
        (lambda name: f"{name}.gz", gzip.compress),
        (lambda name: name.replace("-idx", ".idx"), bytes),
        (lambda name: name.replace("-idx", ".idx") + ".gz", gzip.compress),
        (lambda name: name.replace("t10k", "test"), bytes),
        (lambda name: name, gzip.compress),  # compressed under a plain name
        (lambda name: f"{name}.gz", bytes),  # decompressed by a browser that kept the name
    ],
)
def test_variants_of_the_names(tmp_path, rename, pack):
    _check(load(f"idx:{_write(tmp_path / 'data', rename, pack)}"))


def test_a_prefix_chooses_among_the_datasets_of_a_folder(tmp_path):
    _write(tmp_path / "gzip", lambda name: f"emnist-letters-{name.replace('t10k', 'test')}.gz")
    (tmp_path / "gzip" / "emnist-digits-train-images-idx3-ubyte.gz").write_bytes(b"other")
    dataset = load(f"idx:{tmp_path}/gzip/emnist-letters")
    assert dataset.name == "emnist-letters"
    _check(dataset)
    with pytest.raises(DataNotFoundError, match=r"no file train-images-idx3-ubyte .* in .*gzip:"):
        load(f"idx:{tmp_path}/gzip")
    with pytest.raises(DataNotFoundError, match=r"no file emnist-digits-train-labels-idx1-ubyte"):
        load(f"idx:{tmp_path}/gzip/emnist-digits")


def test_path_of_this_folder_has_a_name(mnist, monkeypatch):
    monkeypatch.chdir(mnist)
    assert load("idx:.").name == "mnist"


def test_a_folder_called_like_the_file_in_it_is_no_file(mnist):
    (mnist / NAMES[0]).unlink()
    (mnist / NAMES[0]).mkdir()
    (mnist / f"{NAMES[0]}.gz").write_bytes(_idx(X))
    _check(load(f"idx:{mnist}"))


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_is_named(mnist, name):
    (mnist / name).unlink()
    other = " or test-" if name.startswith("t10k") else " "
    with pytest.raises(DataNotFoundError, match=rf"^There is no file {name}{other}.*four files"):
        load(f"idx:{mnist}")


def test_missing_folder(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"^There is no folder .*/none with files in it: "):
        load(f"idx:{tmp_path}/none")
    with pytest.raises(DataNotFoundError, match=r"^There is no folder .*none/a with files in it"):
        load(f"idx:{tmp_path}/none/a")


BROKEN = {
    "labels for images": (_idx(Y), r"begins with the number 2049, but 2051, .* images"),
    "other type": (b"\0\0\x0d\3" + _idx(X)[4:], r"begins with the number 3331, but 2051"),
    "text": (b"<html>404", r"begins with the number 1013478509, but 2051"),
    "empty": (b"", r"ends after 0 bytes, but its header alone has 16"),
    "half a header": (_idx(X)[:9], r"ends after 9 bytes, but its header alone has 16"),
    "cut short": (_idx(X)[:-1], r"has 139 bytes after its header, but 7 x 4 x 5 are announced"),
    "too long": (_idx(X) + b"0", r"has 141 bytes after its header, but 7 x 4 x 5 are announced"),
    "gzip cut short": (
        gzip.compress(_idx(X))[:-9],
        r"cannot be decompressed \(.*\): it is damaged",
    ),
    "gzip overwritten": (
        gzip.compress(_idx(X))[:10] + b"\xff" * 200,
        r"cannot be decompressed \(.*\): it is damaged",
    ),
    "one image fewer": (_idx(X[1:]), r"has 6 images, but train-labels-idx1-ubyte has 7 labels"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named(mnist, kind):
    content, message = BROKEN[kind]
    (mnist / NAMES[0]).write_bytes(content)
    with pytest.raises(DataError, match=rf"^/.*train-images-idx3-ubyte {message}"):
        load(f"idx:{mnist}")


def test_parts_of_two_datasets_are_refused(mnist):
    (mnist / NAMES[2]).write_bytes(_idx(XT[:, :2]))
    with pytest.raises(DataError, match=r"test images of 'mnist' have shape \(2, 5, 1\)"):
        load(f"idx:{mnist}")


@pytest.mark.parametrize("name", ["idx", "idx:"])
def test_a_name_without_a_path_is_explained(name):
    with pytest.raises(DataError, match=r"write 'idx:' followed by its path|'idx:PATH'"):
        load(name)
