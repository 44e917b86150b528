"""The examples of the documentation run as they are printed, and its links lead somewhere."""

import pathlib
import re
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(p for p in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"] if p.exists())
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SKIPPED = re.compile(r"<!-- not run: \S.*-->\s*\Z")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
# Its examples begin with a file of weights that the reader brings.
NOT_RUN = {"docs/interop.md"}
ABSOLUTE = ("http://", "https://", "mailto:")

pytestmark = pytest.mark.skipif(not PAGES, reason="the documentation is not beside the tests")


def page_id(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def examples(text: str) -> list[tuple[int, str]]:
    """The blocks of a page that are to run, each with the number of lines before it."""
    return [
        (text.count("\n", 0, match.start(1)), match[1])
        for match in BLOCK.finditer(text)
        if not SKIPPED.search(text[: match.start()])
    ]


def test_examples_finds_what_is_to_run():
    text = (
        "```python\na = 1\n```\n\n<!-- not run: needs a network -->\n```python\nb = 2\n```\n"
        "<!-- not run: -->\n```python\nc = 3\n```\n```sh\nd\n```\n"
    )
    assert examples(text) == [(1, "a = 1\n"), (10, "c = 3\n")]


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if examples(p.read_text()) and page_id(p) not in NOT_RUN],
    ids=page_id,
)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # classes look their module up
    for lines_before, block in examples(page.read_text()):
        # The empty lines make a traceback show the line of the page.
        exec(compile("\n" * lines_before + block, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page):
    targets = [t for t in LINK.findall(page.read_text()) if not t.startswith(ABSOLUTE)]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing, f"{page_id(page)} links to {missing}"
