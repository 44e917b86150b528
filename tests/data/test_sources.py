"""Sources, datasets from arrays, and channel statistics."""

import numpy as np
import pytest

from nasjax.data import DataError, Dataset, RecordSource, Source, from_arrays

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (12, 4, 5, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3


def _records(count=12):
    return [{"image": IMAGES[i], "label": int(LABELS[i])} for i in range(count)]


def test_source_keeps_images_and_int32_labels():
    source = Source(IMAGES, LABELS.astype(np.uint8))
    assert len(source) == 12
    assert source.image_shape == (4, 5, 3)
    assert source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.images, IMAGES)


def test_take_keeps_the_given_order():
    source = Source(IMAGES, LABELS).take([7, 2])
    np.testing.assert_array_equal(source.images, IMAGES[[7, 2]])
    np.testing.assert_array_equal(source.labels, LABELS[[7, 2]])


def test_record_take_composes():
    source = RecordSource(_records()).take([5, 3, 1]).take([2, 0])
    assert len(source) == 2
    np.testing.assert_array_equal(source.records[0]["image"], IMAGES[1])
    np.testing.assert_array_equal(source.records[1]["image"], IMAGES[5])


def test_from_arrays_computes_statistics_of_the_training_part():
    dataset = from_arrays(IMAGES[:8], LABELS[:8], IMAGES[8:], LABELS[8:], name="mine")
    assert (dataset.name, dataset.num_classes, dataset.image_shape) == ("mine", 3, (4, 5, 3))
    scaled = IMAGES[:8].astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), rtol=1e-12)


def test_from_arrays_takes_grey_images_without_channel_axis():
    dataset = from_arrays(IMAGES[..., 0], LABELS, IMAGES[..., 0], LABELS)
    assert dataset.image_shape == (4, 5, 1)
    assert len(dataset.mean) == len(dataset.std) == 1


def test_given_statistics_are_kept():
    parts = (IMAGES, LABELS, IMAGES, LABELS)
    dataset = from_arrays(*parts, mean=[0.1, 0.2, 0.3], std=(0.5, 0.5, 0.5))
    assert dataset.mean == (0.1, 0.2, 0.3)
    assert dataset.std == (0.5, 0.5, 0.5)


def test_constant_channel_can_be_normalised():
    images = np.full((3, 2, 2, 1), 51, np.uint8)
    dataset = from_arrays(images, [0, 1, 0], images, [0, 1, 0])
    np.testing.assert_allclose(dataset.mean, [0.2])
    assert dataset.std == (1.0,)


def test_statistics_of_records_agree_with_those_of_arrays():
    square = IMAGES[:, :4, :4]
    records = [{"image": image, "label": 0} for image in square]
    lazy = RecordSource(records)
    dataset = Dataset("lazy", lazy, lazy, 1, (4, 4, 3))
    np.testing.assert_allclose(dataset.mean, square.mean((0, 1, 2)) / 255, rtol=1e-12)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, r"images are float64, but uint8 from 0 to 255 is expected"),
        (IMAGES[..., 0], LABELS, r"images have shape \(12, 4, 5\), but \(examples, height"),
        (IMAGES[:0], LABELS[:0], r"no empty axis"),
        (IMAGES, LABELS[:5], r"labels have shape \(5,\), but \(12,\), one class per image"),
        (IMAGES, LABELS[:, None], r"labels have shape \(12, 1\)"),
        (IMAGES, LABELS - 1, r"labels are int64 from -1, but integer classes from 0"),
        (IMAGES, LABELS / 2, r"labels are float64 from 0.0"),
    ],
)
def test_source_refuses(images, labels, message):
    with pytest.raises(DataError, match=message):
        Source(images, labels)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 12], r"indices run from 0 to 12, but the source has 12 examples: use 0 to 11"),
        ([-1], r"indices run from -1"),
        ([], r"a non-empty list of integers is expected"),
        ([True, False], r"type bool"),
    ],
)
@pytest.mark.parametrize("source", [Source(IMAGES, LABELS), RecordSource(_records())])
def test_take_refuses(source, indices, message):
    with pytest.raises(DataError, match=message):
        source.take(indices)


def test_record_source_refuses():
    with pytest.raises(DataError, match=r"records is a int, but an object with __len__"):
        RecordSource(3)
    with pytest.raises(DataError, match=r"channels is 4, but 1 \(grey\) or 3"):
        RecordSource(_records(), channels=4)


def test_dataset_refuses_parts_that_do_not_fit():
    small = IMAGES[:, :3]
    with pytest.raises(DataError, match=r"test images of 'arrays' have shape \(3, 5, 3\)"):
        from_arrays(IMAGES, LABELS, small, LABELS)
    with pytest.raises(DataError, match=r"go up to 2, but num_classes is 2: give .* least 3"):
        from_arrays(IMAGES, LABELS, IMAGES, LABELS, num_classes=2)
    with pytest.raises(DataError, match=r"mean has 1 and std 3 entries, but the images have 3"):
        from_arrays(IMAGES, LABELS, IMAGES, LABELS, mean=(0.5,))
    with pytest.raises(DataError, match=r"train of 'x' is a ndarray, but a Source"):
        Dataset("x", IMAGES, Source(IMAGES, LABELS), 3, (4, 5, 3))
    with pytest.raises(DataError, match=r"train of 'x' has no example"):
        Dataset("x", RecordSource([]), Source(IMAGES, LABELS), 3, (4, 5, 3))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4)), np.zeros(4, np.uint8)]
)
def test_record_with_a_strange_image_is_refused(image):
    source = RecordSource([{"image": image, "label": 0}])
    with pytest.raises(DataError, match=r"A record's image is .* but uint8 \(height, width\)"):
        Dataset("x", source, source, 1, (4, 4, 3))
