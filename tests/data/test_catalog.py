"""Datasets by name: digits, arrays in a file, and unknown names."""

import hashlib
import importlib.util
import pathlib

import numpy as np
import pytest

from nasjax.data import DataError, DataNotFoundError, load

SHARED = pathlib.Path(__file__).parents[2].parent / "shared"
CIFAR = SHARED / "data" / "cifar10_subset.npz"


def test_digits():
    digits = load("digits")
    assert (digits.name, digits.num_classes, digits.image_shape) == ("digits", 10, (8, 8, 1))
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.images.max() == 255
    # Grey level g of 16 becomes round(255 g / 16): all images are made of these 17 values.
    assert set(np.unique(digits.train.images)) == {round(g * 255 / 16) for g in range(17)}
    shares = np.bincount(digits.test.labels) / np.bincount(digits.train.labels)
    np.testing.assert_allclose(shares, 360 / 1437, atol=0.01)


def test_digits_are_divided_the_same_for_ever():
    test = load("digits").test
    digest = hashlib.sha256(test.labels.tobytes() + test.images.tobytes()).hexdigest()
    assert digest[:16] == "fe9d7be557b4d7a7"


@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR.name} is not beside the checkout")
def test_cifar_subset():
    cifar = load(f"npz:{CIFAR}")
    assert (cifar.name, cifar.num_classes) == ("cifar10_subset", 10)
    assert cifar.image_shape == (32, 32, 3)
    assert (len(cifar.train), len(cifar.test)) == (10000, 2000)
    # Near the statistics of all 50,000 training images, 0.4914 0.4822 0.4465.
    np.testing.assert_allclose(cifar.mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    np.testing.assert_allclose(cifar.std, (0.2470, 0.2435, 0.2616), atol=0.01)


def test_npz_round_trip(tmp_path):
    x, y = np.zeros((4, 3, 3, 3), np.uint8), np.array([0, 1, 2, 1])
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    dataset = load(f"npz:{tmp_path}/mine.npz", mean=(0, 0, 0), std=(1, 1, 1))
    assert dataset.name == "mine"
    assert dataset.mean == (0, 0, 0)
    np.testing.assert_array_equal(dataset.test.labels, y)


def test_npz_refuses(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"^There is no file .*none.npz: write one with"):
        load(f"npz:{tmp_path}/none.npz")
    np.savez(tmp_path / "half.npz", x_train=np.zeros(1), labels=np.zeros(1))
    with pytest.raises(DataError, match=r"has no array 'y_train'.*it has x_train, labels"):
        load(f"npz:{tmp_path}/half.npz")


def test_not_found_is_a_file_not_found_error():
    with pytest.raises(FileNotFoundError):
        load("npz:/nowhere.npz")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cifar10", "did you mean 'tfds:cifar10'"),
        ("cifer100", "did you mean 'tfds:cifar100'"),
        ("digit", "did you mean 'digits'"),
        ("digits:8", "did you mean 'digits'"),
        ("foldr:/data", "did you mean 'folder:PATH'"),
        ("npz", "write 'npz:' followed by its path"),
        ("tfds", "write 'tfds:' followed by its name"),
        ("xyzzy", "use 'digits', 'npz:PATH', 'folder:PATH' or 'tfds:NAME'"),
        ("", "use 'digits'"),
    ],
)
def test_unknown_name_suggests_the_nearest(name, hint):
    with pytest.raises(DataError, match=f"Unknown dataset '{name}': .*{hint}"):
        load(name)


def test_unknown_option_lists_the_options():
    with pytest.raises(DataError, match=r"'digits' .* no option 'size': the options are mean, std"):
        load("digits", size=8)


def test_missing_package_names_the_extra(monkeypatch):
    def without(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    monkeypatch.setattr(importlib, "import_module", without)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    message = r"^The dataset 'digits' needs .* sklearn, .*: run pip install \"nasjax\[digits\]\"\.$"
    with pytest.raises(DataError, match=message):
        load("digits")


def test_digits_are_those_of_scikit_learns_loader(monkeypatch):
    by_file = load("digits").train
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # as if its files had moved
    by_loader = load("digits").train
    np.testing.assert_array_equal(by_loader.images, by_file.images)
    np.testing.assert_array_equal(by_loader.labels, by_file.labels)
