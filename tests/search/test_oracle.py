"""Oracles: what they say of tables whose truth is known, and what they refuse."""

import doctest
import functools
import importlib
import itertools
import json
import math

import numpy as np
import pytest

from nasjax.core.architecture import validate
from nasjax.core.space import Choice, SearchSpace
from nasjax.search import Oracle, OracleError, TableKey

TINY = "width,ratio,test_acc,note\n8,1.5,90.0,a\n8,4.0,92.5,b\n16,1.5,92.5,c\n16,4.0,81,d\n"
KEY = TableKey(("width", "ratio"), lambda arch: {"width": arch["w"], "ratio": arch["r"]})


@pytest.fixture
def table(tmp_path):
    """Writes a table and gives its path."""

    def write(text, name="tiny.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def tiny(table):
    return Oracle.read(table(TINY), KEY, size=4)


def test_tiny_table(tiny):
    assert (tiny.name, tiny.size, tiny.best) == ("tiny", 4, 92.5)
    assert tiny.mean == 89.0
    assert tiny.std == pytest.approx(math.sqrt((1 + 12.25 + 12.25 + 64) / 4))
    assert tiny.score({"w": 8, "r": 1.5}) == {
        "accuracy": 90.0,
        "rank": 3,
        "percentile": 75.0,
        "regret": 2.5,
    }
    # Equal accuracies share the best rank, and are both at least as good.
    for arch in ({"w": 8, "r": 4.0}, {"w": 16, "r": 1.5}):
        assert (tiny.rank(arch), tiny.percentile(arch), tiny.regret(arch)) == (1, 50.0, 0.0)
    assert (tiny.rank({"w": 16, "r": 4.0}), tiny.percentile({"w": 16, "r": 4.0})) == (4, 100.0)


def test_score_is_json_and_repr_keeps_the_secret(tiny):
    score = tiny.score({"w": 8, "r": 1.5})
    assert json.loads(json.dumps(score)) == score
    assert repr(tiny) == "Oracle(name='tiny', size=4)"


@pytest.mark.parametrize("draws", [1, 2, 3, 5])
def test_random_search_is_the_mean_over_all_draws(tiny, draws):
    outcomes = itertools.product([90.0, 92.5, 92.5, 81.0], repeat=draws)
    assert tiny.random(draws) == pytest.approx(np.mean([max(o) for o in outcomes]), abs=1e-12)


def test_random_search_of_many_draws_finds_the_best(tiny):
    assert tiny.random(np.int64(10_000)) == 92.5
    assert tiny.random(1) == pytest.approx(tiny.mean, abs=1e-12)


def test_a_table_of_one_architecture(table):
    oracle = Oracle.read(table("arch,test_acc\nx,50\n"), TableKey(("arch",), dict))
    assert (oracle.random(1), oracle.random(7), oracle.std) == (50.0, 50.0, 0.0)
    assert oracle.score({"arch": "x"}) == {
        "accuracy": 50.0,
        "rank": 1,
        "percentile": 100.0,
        "regret": 0.0,
    }


@pytest.mark.parametrize("width", [8, 8.0, "8", " 8.00", "8e0", np.int32(8), np.float32(8)])
def test_values_are_compared_as_numbers_where_they_are_numbers(tiny, width):
    assert tiny.accuracy({"w": width, "r": np.float32(1.5)}) == 90.0


@pytest.mark.parametrize("text", ["1e", "nan", "inf", "1_0", "8 16", "0x8", "[8, 16]", "True", ""])
def test_other_values_are_compared_as_text(table, text):
    key = TableKey(("arch",), lambda arch: {"arch": arch})
    oracle = Oracle.read(table(f'arch,test_acc\n" {text} ",1.5\n1,2\n10,3\n8,4\n'), key)
    assert oracle.accuracy(text) == 1.5
    assert oracle.rank(text) == 4


def test_none_is_an_empty_value_as_csv_writes_it(table):
    key = TableKey(("a", "b"), lambda arch: arch)
    oracle = Oracle.read(table("a,b,test_acc\n1,,7\n1,2,8\n"), key)
    assert oracle.accuracy({"a": 1, "b": None}) == 7.0


def test_large_whole_numbers_stay_apart(table):
    key = TableKey(("id",), lambda arch: {"id": arch})
    oracle = Oracle.read(table(f"id,test_acc\n{2**60},7\n{2**60 + 1},8\n"), key)
    assert oracle.accuracy(2**60 + 1) == 8.0


def test_form_of_the_file(table):
    """A byte order mark, spaces, Windows lines, empty lines and quotes change nothing."""
    text = '\ufeff width , "ratio",test_acc\r\n 8,1.5,90.0\r\n\r\n"16", 4.0 ,"92.5"\r\n\r\n'
    oracle = Oracle.read(str(table(text)), KEY, name="mine")
    assert (oracle.name, oracle.size) == ("mine", 2)
    assert oracle.accuracy({"w": 16, "r": 4}) == 92.5


def _nas_bench_201(arch):
    a, b, c, d, e, f = arch["ops"]
    return {"arch": f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"}


def test_architectures_written_as_one_string(table):
    ops = ("none", "skip_connect", "nor_conv_3x3")
    archs = [{"ops": six} for six in itertools.product(ops, repeat=6)]
    lines = [f"{_nas_bench_201(a)['arch']},{i % 90},{i % 80}" for i, a in enumerate(archs)]
    path = table("arch,cifar10,cifar100\n" + "\n".join(lines))
    key = TableKey(("arch",), _nas_bench_201)
    oracle = Oracle.read(path, key, accuracy="cifar100", size=3**6)
    assert [oracle.accuracy(a) for a in archs] == [i % 80 for i in range(3**6)]
    with pytest.raises(OracleError, match=r"holds values like '\|none~0\|\+\|none~0\|none~1\|\+"):
        oracle.accuracy({"ops": ("pool", *ops, *ops[:2])})


CELL = tuple(f"{cell}{edge}" for cell in "nr" for edge in ("01", "02", "12"))
MACRO = ("c1", "c2", "c3", "c4", "k1", "k2", "k3", "k4")


@pytest.mark.parametrize(
    ("file", "columns", "size", "best", "mean", "std", "best_of_100", "best_arch"),
    [
        ("toy_cell_fashion_mnist", CELL, 4**6, 91.63, 90.024, 1.210, 91.43, (0, 0, 2, 0, 2, 0)),
        (
            "toy_conv_macro_cifar10",
            MACRO,
            3**8,
            84.41,
            77.901,
            5.623,
            83.13,
            (32, 64, 128, 128, 3, 7, 5, 7),
        ),
    ],
)
def test_published_tables(shared, file, columns, size, best, mean, std, best_of_100, best_arch):
    key = TableKey(columns, lambda arch: dict(zip(columns, arch, strict=True)))
    oracle = Oracle.read(shared / "benchmarks" / f"{file}.csv", key, size=size)
    assert oracle.best == best
    assert oracle.mean == pytest.approx(mean, abs=6e-4)
    assert oracle.std == pytest.approx(std, abs=6e-4)
    assert oracle.random(1) == pytest.approx(oracle.mean, abs=1e-9)
    assert oracle.random(100) == pytest.approx(best_of_100, abs=6e-3)
    score = oracle.score(best_arch)
    assert score == {"accuracy": best, "rank": 1, "percentile": 100 / size, "regret": 0.0}


@pytest.mark.parametrize("draws", [10, 100])
@pytest.mark.parametrize(
    ("file", "columns"), [("toy_cell_fashion_mnist", CELL), ("toy_conv_macro_cifar10", MACRO)]
)
def test_random_search_agrees_with_drawing(shared, file, columns, draws):
    oracle = Oracle.read(shared / "benchmarks" / f"{file}.csv", TableKey(columns, dict))
    accuracies = np.array(list(oracle.accuracies.values()))
    found = np.random.RandomState(0).choice(accuracies, (4000, draws)).max(1)
    assert oracle.random(draws) == pytest.approx(found.mean(), abs=5 * found.std() / 4000**0.5)


READ = functools.partial(Oracle.read, key=KEY)
REFUSED = {
    "empty": ("", r"tiny.csv is empty: a header and a row per architecture are expected\."),
    "no rows": ("width,ratio,test_acc\n", r"tiny.csv has a header but no row"),
    "key column": (
        "widht,ratio,test_acc\n8,1,2\n",
        r"has no column 'width', which TableKey's columns name; did you mean 'widht'\? "
        r"Known: widht, ratio, test_acc\.$",
    ),
    "accuracy column": (
        "width,ratio,train_acc\n8,1,2\n",
        r"has no column 'test_acc', which accuracy= names; did you mean 'train_acc'\?",
    ),
    "column twice": (
        "width,ratio,test_acc,test_acc\n8,1,2,3\n",
        r"has 2 columns called 'test_acc': give each its own name",
    ),
    "row twice": (
        "width,ratio,test_acc\n8,1,2\n16,1,3\n\n8.0,1,4\n",
        r"lines 2 and 5 of .* are of one architecture \(width=8\.0, ratio=1\): keep one row",
    ),
    "no number": (
        "width,ratio,test_acc\n8,1,2\n16,1,n/a\n",
        r"'test_acc' in line 3 of .* is 'n/a', but a percentage from 0 to 100",
    ),
    "not a number": ("width,ratio,test_acc\n8,1,nan\n", r"in line 2 of .* is 'nan', but"),
    "missing accuracy": ("width,ratio,test_acc\n8,1,\n", r"in line 2 of .* is '', but"),
    "too large": ("width,ratio,test_acc\n8,1,100.1\n", r"in line 2 of .* is 100.1, but"),
    "negative": ("width,ratio,test_acc\n8,1,-0.5\n", r"in line 2 of .* is -0.5, but"),
    "fractions": (
        "width,ratio,test_acc\n8,1,0.9\n16,1,0.91\n",
        r"'test_acc' of .* is at most 1 in every row, .*: multiply the column by 100",
    ),
    "short row": (
        "width,ratio,test_acc\n8,1,2\n16,1\n",
        r"line 3 of .* has 2 values, but the header has 3 columns",
    ),
    "open quote": ('width,ratio,test_acc\n8,"1,2\n', r"cannot be read as CSV \(.*\): write it as"),
    "no text": (b"width\xff\xfe\n", r"cannot be read as CSV \(.*\): write it as UTF-8 text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_read_refuses(table, case):
    text, message = REFUSED[case]
    with pytest.raises(OracleError, match=message):
        READ(table(text))


@pytest.mark.parametrize("size", [3, 5])
def test_size_must_be_that_of_the_space(table, size):
    with pytest.raises(OracleError, match=rf"has 4 architectures, but the space has {size}: give"):
        READ(table(TINY), size=size)


def test_absent_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(OracleError, match=r"^There is no file .*: give the path of a CSV file"):
            READ(path)


def test_an_oracle_of_nothing_is_refused():
    with pytest.raises(OracleError, match=r"oracle 'x' has no architecture"):
        Oracle("x", KEY, {})


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (
            {"w": 9, "r": 1.5},
            r"'tiny' has no row with width=9, ratio=1.5: column 'width' holds 8, 16; check",
        ),
        ({"w": 8}, r"fails with KeyError \('r'\) on the architecture \{'w': 8\}: give"),
        (3, r"fails with TypeError .* on the architecture 3: give an architecture"),
    ],
)
def test_unknown_architecture_is_refused(tiny, arch, message):
    for ask in (tiny.accuracy, tiny.rank, tiny.percentile, tiny.regret, tiny.score):
        with pytest.raises(OracleError, match=message):
            ask(arch)


def test_a_missing_combination_is_refused(table):
    oracle = READ(table(TINY.rsplit("16,4.0", 1)[0]))
    with pytest.raises(OracleError, match=r"it holds each of these values, but not together"):
        oracle.accuracy({"w": 16, "r": 4.0})


@pytest.mark.parametrize("draws", [0, -1, 1.5, True, "3", None])
def test_random_refuses(tiny, draws):
    with pytest.raises(OracleError, match=rf"draws is {draws!r}, but a number of architectures"):
        tiny.random(draws)


@pytest.mark.parametrize("columns", [(), ("a", "a")])
def test_key_refuses(columns):
    with pytest.raises(OracleError, match=r"TableKey's columns are .*at least one name, and each"):
        TableKey(columns, dict)


def test_key_must_give_its_columns(table):
    key = TableKey(("width", "ratio"), lambda arch: {"width": 8, "depth": 2})
    with pytest.raises(OracleError, match=r"gives the columns width, depth, but .* width, ratio"):
        Oracle.read(table(TINY), key).accuracy({})


def test_a_single_column_may_be_a_string():
    assert TableKey("arch", dict).columns == ("arch",)  # type: ignore[arg-type]


def test_errors_of_the_space_are_passed_on(table):
    """A key may check its architecture, and what the space says is the clearer sentence."""
    space = SearchSpace("s", (Choice("w", (8, 16)),), {"embed": "w"})
    key = TableKey(("w",), lambda arch: validate(space, arch))
    oracle = Oracle.read(table("w,test_acc\n8,50\n16,60\n"), key, size=space.size)
    with pytest.raises(ValueError, match=r"^w = 9 is not an option of space 's'"):
        oracle.rank({"w": 9})


@pytest.mark.parametrize("module", ["_table", "oracle"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"nasjax.search.{module}"))
    assert result.attempted and not result.failed
