"""A cell space searched, retrained and judged by a table, through the launcher."""

import csv
import itertools
import json
import os
import pathlib
import subprocess
import sys
import types
from typing import ClassVar

import benchmark
import benchmark_oracle
import experiment
import numpy as np
import pytest

from nasjax.core.errors import NasjaxError
from nasjax.spaces.toy_cell import toy_cell
from tests.launch.test_search import complain, environment

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("tiny_cell.py")
COLUMNS = tuple(toy_cell().columns)


def accuracy(ops):
    return 90.0 + 0.1 * sum(ops)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A data set of 8x8 images, and a table in which the operations of higher index are better."""
    folder = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    images = rng.integers(0, 128, (160, 8, 8), dtype=np.uint8) + 30 * labels[:, None, None]
    images = images.astype(np.uint8)
    np.savez(
        folder / "data.npz",
        x_train=images[:128], y_train=labels[:128], x_test=images[128:], y_test=labels[128:],
    )  # fmt: skip
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "test_acc", "num_params"])
        for ops in itertools.product(range(4), repeat=6):
            writer.writerow([*ops, accuracy(ops), 1])
    return folder


def options(given, workdir):
    return [
        "--config", CONFIG, "--workdir", workdir, f"--config.data.name=npz:{given / 'data.npz'}",
        f"--config.oracle.path={given / 'table.csv'}",
    ]  # fmt: skip


def test_a_search_is_judged_and_its_network_retrained(given, tmp_path):
    command = [sys.executable, ROOT / "launch" / "search.py", *options(given, tmp_path)]
    done = subprocess.run(
        [str(part) for part in command], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    arch = json.loads((tmp_path / "arch.json").read_text())
    indices = [toy_cell().columns[c](arch["architecture"]) for c in COLUMNS]
    assert arch["genotype"].startswith("Genotype(normal=[(")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["oracle"]["found"]["accuracy"] == pytest.approx(accuracy(indices))
    assert result["oracle"]["best"] == pytest.approx(91.8)
    assert f"rank {result['oracle']['found']['rank']:,} of 4,096" in done.stdout
    row = result["rows"][0]
    assert all(0 <= row[k] <= 1 for k in ("inherited", "retrained"))
    assert row["fine_tuned"] is None  # as the configuration has it
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    judged = [x for x in lines if "oracle" in x]
    assert [x["epoch"] for x in judged] == [1, 2, 3]  # every epoch, and only the search
    for line in judged:
        ops = [toy_cell().columns[c](line["architecture"]) for c in COLUMNS]
        assert line["oracle"]["regret"] == pytest.approx(91.8 - accuracy(ops))
    assert "The truth" in (tmp_path / "report.html").read_text()


def change_table(given, path, change):
    """The table with other rows, below the header."""
    with (given / "table.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(change(rows))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "4095"),
        (lambda rows: [*rows, rows[5]], "lines 6 and 4098"),
        (lambda rows: [[*rows[0][:5], "x", *rows[0][6:]], *rows[1:]], "r12"),
        (lambda rows: [*rows[:-1], ["9", *rows[-1][1:]]], "has no row with n01=3"),
    ],
    ids=["missing", "double", "column", "foreign"],
)
def test_a_bad_table_is_refused(given, tmp_path, change, message):
    bad = change_table(given, tmp_path / "bad.csv", change)
    run = types.SimpleNamespace(config={"oracle": {"path": str(bad)}}, supernet=toy_cell())
    with pytest.raises(NasjaxError, match=message):
        experiment.open_oracle(run)


def test_an_unknown_key_of_the_oracle_is_named():
    run = types.SimpleNamespace(config={"oracle": {"acuracy": "x"}}, supernet=toy_cell())
    with pytest.raises(NasjaxError, match="no key 'acuracy'; did you mean 'accuracy'"):
        experiment.open_oracle(run)


def test_a_bad_table_is_one_sentence_and_nothing_is_searched(given, tmp_path):
    bad = change_table(given, tmp_path / "bad.csv", lambda rows: rows[:-1])
    extra = f"--config.oracle.path={bad}"
    assert "4095" in complain("search.py", *options(given, tmp_path / "run"), extra)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_sampling_ends_with_the_best_of_some_random_networks(given, tmp_path):
    """SPOS: a super-network trained by sampling, then searched on images it was not trained on."""
    shared = options(given, tmp_path)
    extra = ["--config.search.sampler.kind=uniform", "--config.search.searcher.name=random",
             "--config.search.searcher.evaluations=3", "--config.compare.retrain=False",
             "--config.search.recipe.epochs=1"]  # fmt: skip
    command = [sys.executable, ROOT / "launch" / "search.py", *shared, *extra]
    done = subprocess.run(
        [str(part) for part in command], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [x for x in lines if x["phase"] == "search"]
    assert trained and not any("oracle" in x or "architecture" in x for x in trained)
    found = json.loads((tmp_path / "arch.json").read_text())["architecture"]
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["architecture"] == found
    _, *entries = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    accuracies = {json.dumps(e["architecture"]): e["values"]["accuracy"] for e in entries}
    assert len(accuracies) == 3 and accuracies[json.dumps(found)] == max(accuracies.values())
    # The table judges the best so far, which the search itself never sees.
    judged = [x for x in lines if x["phase"] == "evaluations"]
    ops = [toy_cell().columns[c](judged[-1]["architecture"]) for c in COLUMNS]
    assert [judged[0]["step"], judged[-1]["step"]] == [1, 3]
    assert judged[-1]["oracle"]["regret"] == pytest.approx(91.8 - accuracy(ops))
    assert "Table table" in done.stdout


class Finished:
    """Stands for the process of a search: leaves in its directory what a search leaves."""

    commands: ClassVar[list[list[str]]] = []
    found: ClassVar = {("entangled", 0): 91.0, ("entangled", 1): 90.0, ("plain", 0): 88.0}

    def __init__(self, command, **options):
        del options
        values = dict(part.removeprefix("--").split("=", 1) for part in command[2:])
        accuracy = self.found[values["config.space.sharing"], int(values["config.seed"])]
        folder = pathlib.Path(values["workdir"])
        judged = {"accuracy": accuracy, "regret": 92.0 - accuracy, "rank": int(93 - accuracy)}
        oracle = {"found": judged, "best": 92.0, "random": {"1": 89.0, "10": 91.0}}
        (folder / "result.json").write_text(json.dumps({"oracle": oracle}))
        line = {"phase": "search", "step": 1, "oracle": {"regret": 92.0 - accuracy}}
        (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        self.commands.append(command)
        self.pid = os.posix_spawn("/bin/true", ["true"], {})


def run_benchmark(monkeypatch, workdir, *extra):
    monkeypatch.setattr(benchmark_oracle.subprocess, "Popen", Finished)
    Finished.commands.clear()
    arguments = ["oracle", "--space", "toy_cell", "--table", "t.csv", "--data", "idx:d", *extra]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--workdir", str(workdir)])
    benchmark.main()


def test_the_benchmark_compares_and_repeats_no_search_that_is_over(tmp_path, capsys, monkeypatch):
    one = ("--seeds", "1", "--set", "space.channels=8", "search.recipe.epochs=2")
    run_benchmark(monkeypatch, tmp_path, *one)
    assert len(Finished.commands) == 2
    assert {"--config.space.channels=8", "--config.search.recipe.epochs=2"} <= set(
        Finished.commands[0]
    )
    run_benchmark(monkeypatch, tmp_path, "--sharing", "entangled", *one[:1], "2", *one[2:])
    (command,) = Finished.commands  # the other is over
    assert "--config.seed=1" in command
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = result["methods"]
    assert (row["method"], row["test_acc"]) == ("drnas/entangled", [91.0, 90.0])
    assert (row["mean_test_acc"], row["mean_regret"], row["mean_rank"]) == (90.5, 1.5, 2.5)
    assert {"device", "versions", "random"} <= set(result)
    table = (tmp_path / "oracle.txt").read_text()
    assert "90.50 ± 0.50" in table and "random, best of 10" in table and "GiB" in table
    assert "drnas/entangled" in (tmp_path / "oracle.svg").read_text()


def test_the_benchmark_mixes_no_experiments(tmp_path, monkeypatch):
    run_benchmark(monkeypatch, tmp_path, "--seeds", "1")
    with pytest.raises(SystemExit, match=r"holds another search \(.*:small, not .*:full\)"):
        run_benchmark(monkeypatch, tmp_path, "--seeds", "1", "--size", "full")
    with pytest.raises(SystemExit, match="a number of seeds from 1"):
        run_benchmark(monkeypatch, tmp_path, "--seeds", "0")
