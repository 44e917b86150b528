import numpy as np
import pytest

from nasjax.interop.layout import Layout


@pytest.mark.parametrize(
    "pattern, ours, theirs",
    [
        ("n -> n", (4,), (4,)),
        ("out in -> in out", (2, 5), (5, 2)),
        ("1 1 n -> n", (4,), (1, 1, 4)),
        ("embed channel row column -> row column channel embed", (2, 3, 1, 8), (8, 1, 2, 3)),
        ("(heads qkv) embed -> embed qkv heads", (5, 3, 4), (12, 5)),
        ("(qkv heads) embed -> embed qkv heads", (5, 3, 4), (12, 5)),
    ],
)
def test_shapes_and_round_trip(pattern, ours, theirs):
    layout = Layout(pattern)
    array = np.arange(np.prod(ours)).reshape(ours)
    written = layout.write(array)
    assert layout.shape(ours) == written.shape == theirs
    assert written.flags.c_contiguous
    sizes = layout.stored(theirs, ours)
    np.testing.assert_array_equal(layout.read(written, sizes), array)


def test_interleaved_rows_are_dealt_out():
    rows = np.arange(12).reshape(12, 1)
    layout = Layout("(heads qkv) embed -> embed qkv heads")
    query, key, value = layout.read(rows, layout.stored((12, 1), (1, 3, 4)))[0]
    np.testing.assert_array_equal(query, rows[0::3, 0])
    np.testing.assert_array_equal(key, rows[1::3, 0])
    np.testing.assert_array_equal(value, rows[2::3, 0])


def test_contiguous_parts():
    rows = np.arange(12).reshape(12, 1)
    layout = Layout("(qkv heads) embed -> embed qkv heads")
    parts = layout.read(rows, layout.stored((12, 1), (1, 3, 4)))[0]
    np.testing.assert_array_equal(parts, rows.reshape(3, 4))


@pytest.mark.parametrize(
    "theirs, larger, fits",
    [
        ((12, 5), (), True),
        ((15, 5), (), False),  # larger where it must not be
        ((15, 5), (2,), True),
        ((14, 5), (2,), False),  # no whole number of heads
        ((9, 5), (2,), False),  # smaller
        ((12, 6), (2,), False),
        ((12, 6), (0, 2), True),
        ((12,), (0, 2), False),
        ((12, 5, 1), (), False),
    ],
)
def test_which_tensors_can_be_cut(theirs, larger, fits):
    layout = Layout("(heads qkv) embed -> embed qkv heads")
    sizes = layout.stored(theirs, (5, 3, 4), larger)
    assert (sizes is not None) is fits
    if fits:
        assert sizes == {"heads": theirs[0] // 3, "qkv": 3, "embed": theirs[1]}
