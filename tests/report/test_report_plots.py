"""Every figure is valid, repeatable SVG that shows what it should, in any state of a run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from nasjax.report import (
    Run,
    accuracy_size_plot,
    architecture_plot,
    mixture_plot,
    training_plot,
)

PLOTS: list[Callable[[Run], str]] = [
    mixture_plot,
    training_plot,
    accuracy_size_plot,
    lambda run: architecture_plot(run.architecture, run.choices, layers=run.layers),
]


def texts(svg: str) -> list[str]:
    """All strings a reader sees in a figure."""
    root = ElementTree.fromstring(svg)
    return [text for node in root.iter() if node.tag.endswith("text") for text in node.itertext()]


@pytest.mark.parametrize("plot", PLOTS)
def test_is_xml_and_repeatable(plot: Callable[[Run], str], workdir: Path) -> None:
    run = Run.load(workdir)
    svg = plot(run)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert svg == plot(run)


@pytest.mark.parametrize("plot", PLOTS)
def test_says_when_there_is_nothing_to_draw(plot: Callable[[Run], str]) -> None:
    assert "yet" in "".join(texts(plot(Run("empty"))))


def test_one_logged_step_is_enough(workdir: Path) -> None:
    path = workdir / "metrics.jsonl"
    path.write_text(path.read_text().splitlines()[0])
    run = Run.load(workdir)
    assert "num_heads" in texts(mixture_plot(run))
    assert "Search: loss" in texts(training_plot(run))


def test_mixture_marks_layers_the_network_leaves_out(workdir: Path) -> None:
    assert texts(mixture_plot(Run.load(workdir))).count("unused") == 2


def test_training_joins_the_random_networks_in_its_legend(workdir: Path) -> None:
    shown = texts(training_plot(Run.load(workdir)))
    assert "retrain: random (2)" in shown and "finetune: found" in shown


def test_size_labels_each_network(workdir: Path) -> None:
    shown = texts(accuracy_size_plot(Run.load(workdir)))
    assert [shown.count(name) for name in ("found", "largest", "random")] == [2, 2, 2]


def test_architecture_shows_values_and_unused_layers(workdir: Path) -> None:
    run = Run.load(workdir)
    shown = texts(architecture_plot(run.architecture, run.choices))
    # The depth of 3 is out of 4: the fourth layer is there, but dashed.
    assert shown.count("unused") == 1
    assert {"embed_dim", "48", "of 32, 40, 48", "largest 4", "input", "output"} <= set(shown)


@pytest.mark.parametrize(
    "architecture",
    [
        {"op": ["sep_conv_3x3", "skip", "skip"], "bias": True},
        {"width": [0, 16, 32]},
        {"kernel": [3, 5], "stage_depth": [2, 3, 4], "x": []},
        {"width": [1536] * 40, "<&>": 3},
        {"embed_dim": 48},
    ],
)
def test_architecture_of_any_space(architecture: dict[str, object]) -> None:
    ElementTree.fromstring(architecture_plot(architecture))


def test_leaves_matplotlib_as_it_was(workdir: Path) -> None:
    code = f"""
import sys, matplotlib
matplotlib.rcParams["font.size"] = 33.0
from nasjax.report import write_report
write_report({str(workdir)!r})
assert matplotlib.rcParams["font.size"] == 33.0
assert "matplotlib.pyplot" not in sys.modules
"""
    # The package may be importable only through the path that pytest was told.
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=path)


def test_missing_matplotlib_is_said_in_one_sentence(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'^figures need matplotlib: pip install "nasjax\['):
        training_plot(Run.load(workdir))


def test_a_cell_is_drawn_as_a_graph_without_the_edges_that_are_nothing():
    choices = [{"name": "operation", "options": ["none", "skip", "conv"], "per": "edges"}]
    picked = {"operation": ["conv", "none", "skip"]}
    shown = texts(architecture_plot(picked, choices, nodes={"operation": [[0], [1, 2]]}))
    assert sorted(shown) == ["1", "2", "conv", "input", "operation", "skip"]


def test_a_cell_whose_edges_do_not_fit_is_drawn_as_layers():
    choices = [{"name": "operation", "options": ["none", "conv"], "per": "edges"}]
    shown = texts(
        architecture_plot({"operation": ["conv"]}, choices, nodes={"operation": [[0, 1]]})
    )
    assert "conv" in shown and "input" in shown and "layer" in shown
