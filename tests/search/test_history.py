"""Histories: what was evaluated is on disk at once, and only a history of this search is read."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from nasjax.core import architecture
from nasjax.search import Evaluated, History, SearchError
from tests.search.toys import SPACE, accuracy, code, found, params, problem

DRAWN = list(
    {
        code(a): a for i in range(30) for a in [architecture.sample(SPACE, jax.random.key(i))]
    }.values()
)
IDENTITY = {"problem": problem().describe(), "seed": 3, "sizes": (1, 2)}


def values(arch: dict) -> dict[str, float]:
    return {"accuracy": accuracy(arch), "params": params(arch)}


def written(path: pathlib.Path, count: int = len(DRAWN)) -> History:
    history = History(SPACE, path, IDENTITY)
    for arch in DRAWN[:count]:
        history.add(arch, values(arch))
    return history


def test_a_history_is_what_was_added_in_its_order() -> None:
    history = History(SPACE)
    for arch in DRAWN:
        assert history.get(arch) is None
        history.add(arch, values(arch))
        assert history.get(arch) == values(arch)
    assert len(history) == len(DRAWN) > 20
    assert list(history) == [Evaluated(arch, values(arch)) for arch in DRAWN]


def test_each_entry_is_on_disk_as_soon_as_it_is_added(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "some" / "folder" / "history.jsonl"
    history = History(SPACE, path, IDENTITY)
    for number, arch in enumerate(DRAWN, start=1):
        history.add(arch, values(arch))
        read = History(SPACE, path, IDENTITY)
        assert list(read) == list(history) and len(read) == number
    header, *lines = map(json.loads, path.read_text().splitlines())
    assert header == {"history": json.loads(json.dumps(IDENTITY))}
    assert [line["architecture"] for line in lines] == DRAWN


def test_numbers_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    arch, path = DRAWN[0], tmp_path / "history.jsonl"
    given = {"accuracy": np.float32(0.1), "params": 2**60 + 1, "third": 1 / 3}
    History(SPACE, path).add(arch, given)
    (read,) = History(SPACE, path)
    assert read.values == {"accuracy": float(np.float32(0.1)), "params": 2**60 + 1, "third": 1 / 3}
    assert type(read.values["params"]) is int


def test_other_spellings_of_an_architecture_are_the_same_one() -> None:
    history = History(SPACE)
    history.add({"ratio": np.array([4, 1]), "depth": 2.0, "width": np.int8(3)}, {"accuracy": 1})
    assert history.get({"width": 3, "depth": 2, "ratio": [4, 1]}) == {"accuracy": 1}
    assert json.dumps(next(iter(history)).arch) == '{"width": 3, "depth": 2, "ratio": [4, 1]}'
    with pytest.raises(AssertionError, match="evaluated once"):
        history.add({"width": 3, "depth": 2, "ratio": (4, 1)}, {"accuracy": 2})


def known(path: pathlib.Path) -> list[Any]:
    """The lines of the file without their times."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{n: v for n, v in line.items() if n != "seconds"} for line in lines]


def test_a_file_cut_anywhere_keeps_all_whole_lines_and_takes_more(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "history.jsonl"
    written(path, 3)
    whole, known_whole = path.read_bytes(), known(path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in sorted({*range(0, len(whole), 11), *ends, *(end - 1 for end in ends)}):
        path.write_bytes(whole[:cut])
        history = History(SPACE, path, IDENTITY)
        kept = max(sum(end <= cut for end in ends) - 1, 0)
        assert [e.arch for e in history] == DRAWN[:kept], cut
        for arch in DRAWN[kept:3]:
            history.add(arch, values(arch))
        assert known(path) == known_whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"another search \(seed was 3, is 4\); move it away or choose another path"),
        ({"sizes": (1, 3)}, r"sizes was \[1, 2\], is \[1, 3\]"),
        ({"problem": {}}, "problem was .*'space': 'toys'.*, is {}"),
        ({"more": 1}, "more was None, is 1"),
    ],
)
def test_a_history_of_another_search_is_refused(
    tmp_path: pathlib.Path, change: dict, message: str
) -> None:
    path = tmp_path / "history.jsonl"
    written(path)
    before = path.read_bytes()
    with pytest.raises(SearchError, match=message):
        History(SPACE, path, {**IDENTITY, **change})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["not JSON\n", "[1, 2]\n", '{"phase": "search"}\n', '{"history": {}}\n{"architecture": {}}\n'],
)
def test_a_file_that_is_no_history_is_refused_and_left_alone(
    tmp_path: pathlib.Path, text: str
) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    with pytest.raises(
        SearchError, match=r"history\.jsonl is no history of a search; move it away"
    ):
        History(SPACE, path)
    assert path.read_text() == text


def test_an_architecture_of_another_space_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "history.jsonl"
    written(path, 2)
    with path.open("a") as file:
        line = {"architecture": {**DRAWN[0], "width": 7}, "values": {}}
        file.write(json.dumps(line) + "\n")
    with pytest.raises(SearchError, match=r"line 4 of .*history.jsonl: width = 7 is not an option"):
        History(SPACE, path, IDENTITY)


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: pathlib.Path) -> None:
    history = written(tmp_path / "history.jsonl", 1)
    (tmp_path / "history.jsonl").unlink()
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(SearchError, match=r"cannot be written .*it continues from what is there"):
        history.add(DRAWN[1], values(DRAWN[1]))


def test_found_ignores_the_order() -> None:
    one, two = History(SPACE), History(SPACE)
    for history, archs in ((one, DRAWN), (two, DRAWN[::-1])):
        for arch in archs:
            history.add(arch, values(arch))
    assert found(one) == found(two) and list(one) != list(two)
