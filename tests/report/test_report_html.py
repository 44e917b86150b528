"""The web page stands alone, is safe against odd names, and fits any state of a run."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from nasjax.report import Run, write_report
from nasjax.report.html import headline


class _Page(HTMLParser):
    """Collects tags, ids and addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.addresses.append(value or "")


def test_page_is_self_contained(workdir: Path) -> None:
    path = write_report(workdir)
    assert path == workdir / "report.html"
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    assert set(re.findall(r"https?://[^/\"'\s]+", text)) <= {"http://www.w3.org"}
    assert "script" not in page.tags and "link" not in page.tags and "@import" not in text
    assert page.tags.count("svg") == 4 and page.tags.count("details") == 1


def test_ids_are_unique_and_resolve(workdir: Path) -> None:
    text = write_report(workdir).read_text(encoding="utf-8")
    page = _Page(text)
    assert len(page.ids) == len(set(page.ids))
    used = {a[1:] for a in page.addresses if a.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(page.ids)


def test_same_files_give_the_same_page_and_nothing_else(workdir: Path) -> None:
    before = {path.name for path in workdir.iterdir()}
    first = write_report(workdir).read_bytes()
    assert write_report(workdir).read_bytes() == first
    assert {path.name for path in workdir.iterdir()} == before | {"report.html"}


def test_escapes_everything(workdir: Path) -> None:
    bad = "<img src=x onerror=alert(1)>$a$"
    result = json.loads((workdir / "result.json").read_text())
    result["space"]["name"] = bad
    result["space"]["choices"][0]["name"] = bad
    result["rows"][1]["network"] = bad
    result["versions"] = {bad: bad}
    result["device"] = bad
    (workdir / "result.json").write_text(json.dumps(result))
    (workdir / "config.json").write_text(json.dumps({bad: bad}))
    arch = json.loads((workdir / "arch.json").read_text())
    arch["architecture"][bad] = bad
    (workdir / "arch.json").write_text(json.dumps(arch))
    metrics = workdir / "metrics.jsonl"
    metrics.write_text(
        metrics.read_text() + json.dumps({"phase": bad, "step": 1, "train_loss": 1.0})
    )
    text = write_report(workdir).read_text(encoding="utf-8")
    assert "<img" not in text and "&lt;img" in text
    assert "img" not in _Page(text).tags


@pytest.mark.parametrize("gone", ["metrics.jsonl", "arch.json", "result.json", "config.json"])
def test_any_file_may_be_missing(gone: str, workdir: Path) -> None:
    (workdir / gone).unlink()
    assert f"<li>{gone} is not there" in write_report(workdir).read_text(encoding="utf-8")


def test_empty_directory(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Nothing has been recorded yet." in text
    assert text.count("<li>") == 4


def test_headline_follows_the_run(workdir: Path) -> None:
    assert headline(Run.load(workdir)) == (
        "Found a network of 51.2k parameters and 0.81M multiply-adds: 98.0% when retrained, "
        "97.2% for random networks of the same space."
    )
    (workdir / "result.json").unlink()
    assert headline(Run.load(workdir)) == (
        "Found a network of 51.2k parameters and 0.81M multiply-adds; "
        "its accuracy has not been measured yet."
    )
    (workdir / "arch.json").unlink()
    assert headline(Run.load(workdir)) == (
        "The search has reached step 1,500 (epoch 14) with 56.0% validation accuracy; "
        "it has not picked its network yet."
    )
