"""Numbers and tables by example."""

from html.parser import HTMLParser
from typing import Any

import pytest

from nasjax.report import format_table, html_table
from nasjax.report.formats import format_accuracy, format_flops, format_params, format_tick

TABLE = """\
network             parameters  multiply-adds    inherited  fine-tuned    retrained
──────────────────  ──────────  ─────────────  ───────────  ──────────  ───────────
found                    51.2k          0.81M  93.0%             97.5%  98.0%
largest                  5.87M          1.34G  94.0%                 —  98.3%
random (mean of 5)       43.0k          0.70M  91.0% ± 1.0           —  97.2% ± 0.4"""


def test_table_by_example(rows: list[dict[str, Any]]) -> None:
    assert format_table(rows) == TABLE


def test_no_rows() -> None:
    assert format_table([]) == "no results yet"
    assert html_table([]) == "<p>No results yet.</p>"


def test_a_row_of_nothing_is_dashes() -> None:
    assert format_table([{"network": "found"}]).splitlines()[-1].split() == ["found", *5 * "—"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (999, "999"),
        (51234, "51.2k"),
        (999_960, "1.00M"),
        (5_870_000, "5.87M"),
        (3.5e8, "350M"),
        (1.34e9, "1.34B"),
        (None, "—"),
        (float("nan"), "—"),
    ],
)
def test_params(value: float | None, text: str) -> None:
    assert format_params(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (5000, "5.0k"), (812345, "0.81M"), (1.34e9, "1.34G"), (2e12, "2.00T"), (None, "—")],
)
def test_flops(value: float | None, text: str) -> None:
    assert format_flops(value) == text


def test_accuracy() -> None:
    assert format_accuracy(0.9754) == "97.5%"
    assert format_accuracy(0.9754, 0.004) == "97.5% ± 0.4"
    assert format_accuracy(None, 0.004) == "—"


def test_tick_labels_have_the_digits_they_need() -> None:
    assert [format_tick(x) for x in (0.0, 500.0, 40e3, 43002.0, 1.125e9)] == [
        "0",
        "500",
        "40k",
        "43.002k",
        "1.125G",
    ]
    assert format_tick(2e9, "B") == "2B"


def test_html_table_escapes_and_marks_the_network_found(rows: list[dict[str, Any]]) -> None:
    text = html_table([*rows, {"network": "<script>alert(1)</script>"}])
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert '<tr class="found"><th scope="row">found</th>' in text
    parser = HTMLParser()
    parser.feed(text)
    parser.close()
    assert text.count("<td>") == 5 * 4
