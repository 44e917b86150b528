"""The ablation of NASViT's Table 7, without its trainings; and the cost of a sandwich step."""

import json
import os
import pathlib
import sys
from typing import ClassVar

import benchmark
import benchmark_oracle
import pytest

from nasjax import report


class Trained:
    """Stands for the process of a training: leaves in its directory what one leaves."""

    commands: ClassVar[list[list[str]]] = []
    smallest: ClassVar = {"baseline": 0.6, "projection": 0.7}

    def __init__(self, command, **options):
        del options
        values = dict(part.removeprefix("--").split("=", 1) for part in command[2:])
        variant, seed = values["config"].rpartition(",")[2], int(values["config.seed"])
        folder = pathlib.Path(values["workdir"])
        smallest = self.smallest[variant] + 0.1 * seed
        lines = [
            {"step": step, "conflict_ratio": ratio, "conflicts": {"head": ratio},
             "steps_per_second": 10.0, "probes": {"smallest": smallest, "largest": 0.9}}
            for step, ratio in ((50, 0.4), (100, 0.2))
        ]  # fmt: skip
        text = "".join(json.dumps({"phase": "search", **line}) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "result.json").write_text("{}")
        self.commands.append(command)
        self.pid = os.posix_spawn("/bin/true", ["true"], {})


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()


def test_variants_are_compared_and_none_is_trained_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark_oracle.subprocess, "Popen", Trained)
    Trained.commands.clear()
    arguments = ["conflict", "--variants", "baseline", "projection", "--workdir", str(tmp_path)]
    run(monkeypatch, *arguments, "--seeds", "1")
    assert len(Trained.commands) == 2
    run(monkeypatch, *arguments, "--seeds", "2")
    assert len(Trained.commands) == 4  # those of the first seed are over
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    baseline, projection = result["variants"]
    assert baseline["smallest_all"] == pytest.approx([0.6, 0.7])
    assert projection["smallest"] == pytest.approx(0.75)
    assert projection["largest"] == 0.9 and projection["conflict_ratio"] == pytest.approx(0.3)
    assert projection["seconds"] == pytest.approx(10.0)
    assert {"device", "versions"} <= set(result)
    assert "75.0% ± 5.0" in (tmp_path / "conflict.txt").read_text()
    figure = (tmp_path / "conflict.svg").read_text()
    assert "baseline" in figure and "projection" in figure
    own = report.conflict_plot(report.Run.load(tmp_path / "baseline_0"))
    assert "<svg" in own and "head" in own


def test_a_configuration_that_does_not_exist_is_named(monkeypatch):
    with pytest.raises(SystemExit, match=r"no configuration nothing\.py"):
        run(monkeypatch, "sandwich", "--config", "nothing.py:digits")
