"""What the report says of a super-network trained by sampling and then searched."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from nasjax import report
from nasjax.report import Run

PROBES = [
    {"smallest": 0.10, "largest": 0.20, "random 1": 0.15, "random 2": 0.12},
    {"smallest": 0.60, "largest": 0.90, "random 1": 0.80, "random 2": 0.70},
]


def sampled(folder: Path, directions: tuple[str, str] = ("max", "min")) -> Path:
    lines = [
        {"phase": "search", "step": 100 * (i + 1), "train_loss": 2.0 - i, "train_accuracy": 0.5,
         "learning_rate": 1e-3, "steps_per_second": 10.0, "probes": probes}
        for i, probes in enumerate(PROBES)
    ]  # fmt: skip
    lines += [
        {"phase": "evaluations", "step": 1, "accuracy": 0.5, "seconds": 1.0},
        {"phase": "evaluations", "step": 3, "accuracy": 0.7, "seconds": 3.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    names = (("accuracy", "part of the examples"), ("params", "parameters"))
    objectives = [
        {"name": n, "direction": d, "unit": u} for (n, u), d in zip(names, directions, strict=True)
    ]
    history = [(0.5, 1000), (0.4, 3000), (0.7, 4000), (0.6, 5000)]
    entries = [{"architecture": {}, "values": {"accuracy": a, "params": p}} for a, p in history]
    text = [json.dumps({"history": {"objectives": objectives}}), *map(json.dumps, entries)]
    (folder / "history.jsonl").write_text("\n".join(text) + "\n")
    return folder


def points(svg: str, colour: str) -> list[int]:
    """How many points each line of that colour among the data has."""
    line = rf'<path d="([^"]+)" clip-path[^>]*stroke: {colour}; stroke-width: 1.5'
    return [len(re.findall("[ML]", path)) for path in re.findall(line, svg)]


def test_the_page_has_the_search_and_the_probes_and_no_mixture(tmp_path):
    text = report.write_report(sampled(tmp_path)).read_text()
    assert "The search of the trained super-network" in text
    assert "Sub-networks while the weights trained" in text
    assert "How the choices were made" not in text and "Entropy of the mixtures" not in text
    for words in ("Pareto set", "accuracy (%)", "evaluations", "2 random", "smallest"):
        assert words in text


def test_a_gradient_search_has_its_mixture_and_no_second_stage(workdir):
    text = report.write_report(workdir).read_text()
    assert "How the choices were made" in text and "super-network</h2>" not in text


@pytest.mark.parametrize(("directions", "front"), [(("max", "min"), 2), (("min", "min"), 2)])
def test_the_front_is_that_of_the_directions(tmp_path, directions, front):
    """Of (50, 1000), (40, 3000), (70, 4000), (60, 5000): two each way."""
    svg = report.population_plot(Run.load(sampled(tmp_path, directions)))
    assert points(svg, "#d1520a") == [front]


def test_without_a_history_there_is_a_message(workdir):
    run = Run.load(workdir)
    assert "No architecture has been evaluated" in report.population_plot(run)
    assert "No sub-network has been looked at" in report.probes_plot(run)


def test_a_torn_history_is_read_as_far_as_it_goes(tmp_path):
    path = sampled(tmp_path) / "history.jsonl"
    path.write_text(path.read_text()[:-5])
    assert len(Run.load(tmp_path).history) == 3


def test_the_any_time_curve_adds_the_training_to_the_evaluations(tmp_path):
    run = Run.load(sampled(tmp_path))
    assert report.search_seconds(run) == pytest.approx(20.0)
    assert report.anytime_accuracy(run) == ([21.0, 23.0], [50.0, 70.0])
    svg = report.anytime_plot({"spos+es": [report.anytime_accuracy(run)], "drnas": []})
    assert "spos+es" in svg and "seconds" in svg


def test_the_regret_of_a_second_stage_is_over_evaluations(tmp_path):
    line = {"phase": "evaluations", "step": 7, "oracle": {"regret": 1.5}}
    with (sampled(tmp_path) / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert report.anytime(Run.load(tmp_path)) == ([7.0], [1.5])


def test_the_page_says_how_well_a_predictor_ranks(tmp_path):
    folder = sampled(tmp_path)
    assert "random forest" not in report.write_report(folder).read_text()
    line = {"phase": "predictor", "step": 1, "objective": "<accuracy>", "spearman": 0.914,
            "kendall": 0.75, "fitted": 25, "architectures": 24}  # fmt: skip
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    text = report.write_report(folder).read_text()
    assert "forest of 25 random architectures ranks 24 others by their &lt;accuracy&gt;" in text
    assert "rho 0.91 and Kendall" in text


def test_regrets_of_searchers_are_drawn_with_their_names():
    curves = {"random": np.linspace([3.0, 2.0], [1.0, 1.5], 60).T, "guided": np.zeros((2, 60))}
    svg = report.searchers_plot(curves)
    for words in ("random", "guided", "evaluations", "regret (percentage points)"):
        assert words in svg
