"""Datasets prepared by tensorflow-datasets: written and read here without TensorFlow."""

import io
import sys

import numpy as np
import pytest

from nasjax.data import DataError, DataNotFoundError, RecordSource, Source, load, make_loader

tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")


def _png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _builder(shape, test_label, with_label=True):
    class TinyPets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """20 images for training and 7 to test; the pixels are the number of the image."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=shape), "id": tfds.features.Text()}
            if with_label:
                features["label"] = tfds.features.ClassLabel(num_classes=3)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            examples = self._generate_examples
            return {
                "train": examples(20, None),
                "test": examples(7, test_label),
                "validation": examples(6, None),
            }

        def _generate_examples(self, count, label):
            for i in range(count):
                example = {"image": _png(i), "id": str(i)}
                if with_label:
                    example["label"] = i % 3 if label is None else label
                yield i, example

    return TinyPets


def _prepare(data_dir, shape=(8, 8, 3), test_label=None, with_label=True):
    builder = _builder(shape, test_label, with_label)
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tiny")
    _prepare(data_dir)
    return data_dir


def test_small_dataset_is_read_into_memory(tiny):
    dataset = load("tfds:tiny_pets", data_dir=tiny)
    assert isinstance(dataset.train, Source)
    assert (dataset.name, dataset.num_classes) == ("tiny_pets", 3)
    assert (len(dataset.train), len(dataset.test)) == (20, 7)
    numbers = dataset.train.images[:, 0, 0, 0]
    assert sorted(numbers.tolist()) == list(range(20))
    np.testing.assert_array_equal(dataset.train.labels, numbers % 3)
    assert "tensorflow" not in sys.modules


def test_splits_and_version_can_be_chosen(tiny):
    dataset = load(
        "tfds:tiny_pets:1.0.0", data_dir=tiny, train_split="train[:50%]", test_split="validation"
    )
    assert (len(dataset.train), len(dataset.test)) == (10, 6)


def test_images_can_be_left_on_disk(tiny):
    dataset = load("tfds:tiny_pets", data_dir=tiny, in_memory=False, image_size=6)
    assert isinstance(dataset.train, RecordSource)
    assert dataset.image_shape == (6, 6, 3)
    assert isinstance(dataset.train.records[0]["image"], bytes)
    batch = make_loader(dataset.train, 20, seed=0, image_size=6).batch(0)
    numbers = np.asarray(batch["image"])[:, 0, 0, 0]
    assert sorted(numbers.tolist()) == list(range(20))
    np.testing.assert_array_equal(batch["label"], numbers % 3)


def test_unknown_shape_stays_on_disk_and_hidden_labels_are_passed_over(tmp_path):
    _prepare(tmp_path, shape=(None, None, 3), test_label=-1)
    with pytest.raises(DataError, match=r"give image_size=PIXELS"):
        load("tfds:tiny_pets", data_dir=tmp_path)
    dataset = load("tfds:tiny_pets", data_dir=tmp_path, image_size=8)
    assert isinstance(dataset.train, RecordSource)
    assert len(dataset.test) == 6  # validation


def test_other_tasks_are_refused(tmp_path):
    _prepare(tmp_path, with_label=False)
    with pytest.raises(DataError, match=r"does not pair an image with a class \(its features are"):
        load("tfds:tiny_pets", data_dir=tmp_path)


def test_unprepared_dataset_says_how_to_prepare_it(tiny):
    message = (
        r"'tfds:cifar10' is not prepared in .*; to prepare it once, run "
        r'pip install "nasjax\[prepare\]" && python -c "import tensorflow_datasets as tfds; '
        r"tfds.builder\('cifar10', data_dir='.*', file_format='array_record'\)"
        r'.download_and_prepare\(\)"'
    )
    with pytest.raises(DataNotFoundError, match=message):
        load("tfds:cifar10", data_dir=tiny)
    with pytest.raises(DataNotFoundError, match=r"did you mean 'tfds:tiny_pets'"):
        load("tfds:tinypets", data_dir=tiny)
    with pytest.raises(DataNotFoundError, match=r"\(version 1.0.0 is\)"):
        load("tfds:tiny_pets:2.0.0", data_dir=tiny)
    with pytest.raises(DataNotFoundError, match=r"is not prepared in"):
        load("tfds:mnist", data_dir=tiny / "nowhere")


def test_unknown_split_lists_the_splits(tiny):
    with pytest.raises(DataError, match=r"no split 'dev': it has .*test"):
        load("tfds:tiny_pets", data_dir=tiny, test_split="dev")


def test_sequential_format_is_refused(tiny, tmp_path):
    import json
    import shutil

    shutil.copytree(tiny / "tiny_pets", tmp_path / "tiny_pets")
    info = tmp_path / "tiny_pets" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"prepared as tfrecord, which has no random access"):
        load("tfds:tiny_pets", data_dir=tmp_path)


def test_configs_must_be_named(tiny, tmp_path):
    import shutil

    for config in ("small", "large"):
        shutil.copytree(tiny / "tiny_pets", tmp_path / "tiny_pets" / config)
    with pytest.raises(DataError, match=r"variants large, small: write.*'tfds:tiny_pets/large'"):
        load("tfds:tiny_pets", data_dir=tmp_path)
    assert len(load("tfds:tiny_pets/small", data_dir=tmp_path).train) == 20
