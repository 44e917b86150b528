"""A search in two stages through the launcher: killed while it evolves, resumed, misused."""

import json
import runpy
import signal
import time

import experiment
import numpy as np
import pytest
import two_stage

from nasjax import recipes, spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from tests.launch.test_search import CONFIG, complain, finish, rows, start

COUNT = 24
OPTIONS = [
    "--config.search.sampler.kind=uniform",
    "--config.search.recipe.epochs=1",
    "--config.search.recipe.warmup_epochs=0",
    f"--config.search.searcher.evaluations={COUNT}",
    "--config.search.searcher.population=8",
    "--config.search.searcher.evolution.parents=4",
    "--config.search.searcher.evolution.mutations=4",
    "--config.search.searcher.evolution.crossovers=4",
    "--config.search.evaluation.batch_size=4",  # slow enough to be killed in the middle
    "--config.compare.finetune=False",
    "--config.compare.retrain=False",
    "--config.compare.samples=0",
    "--config.search.probes.every=6",
    "--config.search.probes.random=1",
    "--config.search.probes.examples=100",
    "--config.search.constraints.params=(0.0, 2500.0)",
]


def history(workdir):
    """Architectures and their values, in order; a torn last line is none."""
    path = workdir / "history.jsonl"
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    return [json.dumps(json.loads(line), sort_keys=True) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(workdir, *OPTIONS))
    return workdir


def test_both_stages_leave_what_a_user_needs(whole):
    entries = [json.loads(line) for line in history(whole)]
    assert len({json.dumps(e["architecture"]) for e in entries}) == len(entries) == COUNT
    assert all(e["values"]["params"] <= 2500 for e in entries)
    found = json.loads((whole / "arch.json").read_text())
    best = max(e["values"]["accuracy"] for e in entries)
    chosen = [e for e in entries if e["architecture"] == found["architecture"]]
    assert [e["values"]["accuracy"] for e in chosen] == [best]
    assert found["params"] == chosen[0]["values"]["params"]
    front = json.loads((whole / "pareto.json").read_text())
    assert found["architecture"] in [row["architecture"] for row in front["architectures"]]
    assert {row["accuracy"] for row in front["architectures"]} == {best}
    space = spaces.make(**json.loads((whole / "config.json").read_text())["space"]).space
    assert all(architecture.validate(space, row["architecture"]) for row in front["architectures"])
    last = rows(whole)[-1]
    assert list(last["probes"]) == ["smallest", "largest", "random 1"]
    assert "val_loss" not in last and np.isfinite(last["train_loss"])
    curve = [row["accuracy"] for row in rows(whole, "evaluations")]
    assert curve == sorted(curve) and curve[-1] == best


def test_killed_while_it_evolves_and_resumed_ends_as_never_killed(whole, tmp_path):
    process = start(tmp_path, *OPTIONS)
    began = time.time()
    while len(history(tmp_path)) < 10 and process.poll() is None:
        assert time.time() - began < 300
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = history(tmp_path)
    assert 10 <= len(before) < COUNT
    assert not (tmp_path / "arch.json").exists()
    finish(start(tmp_path, *OPTIONS))
    after = history(tmp_path)
    # What was known stayed, and nothing was evaluated again.
    assert after[: len(before)] == before and len(set(after)) == len(after) == COUNT
    assert sorted(after) == sorted(history(whole))
    for name in ("arch.json", "pareto.json", "pareto.csv"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    assert rows(tmp_path) == rows(whole) != []


def test_constraints_that_nothing_keeps_are_one_sentence_and_nothing_is_trained(tmp_path):
    shared = ["--config", CONFIG, "--workdir", tmp_path, *OPTIONS[:-1]]
    message = complain("search.py", *shared, "--config.search.constraints.params=(1.0, 2.0)")
    assert "has 1 <= params <= 2; params goes from 678 to 2,718" in message
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"objectives": ("acuracy",)}, "no objective 'acuracy'; did you mean 'accuracy'"),
        ({"objectives": ("accuracy", "params")}, "one objective, not accuracy, params"),
        ({"objectives": ("latency",)}, r"need a predictor in config\.search\.latency"),
        ({"latency": "nowhere.json"}, r"config\.search\.latency = 'nowhere\.json' cannot be read"),
        ({"constraints": {"parms": (0, 1)}}, "'parms' cannot be .* did you mean 'params'"),
        ({"searcher": {"name": "evolutoin", "population": 8}}, "did you mean 'evolution'"),
        ({"searcher": {"name": "nsga2", "population": 1}}, "a population of 1 cannot be crossed"),
        ({"sampler": {"kind": "unifrom"}}, "no sampler 'unifrom'; did you mean 'uniform'"),
        (
            {"sampler": {"kind": "uniform", "limits": {"params": (0, 1)}}},
            "they go from 678 to 2,718",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_trained(tmp_path, change, expected):
    config = runpy.run_path(str(CONFIG))["get_config"]().to_dict()
    config["search"] |= {**recipes.two_stage(), **change}
    run = experiment.open_experiment(config, str(tmp_path))
    with pytest.raises(NasjaxError, match=expected):
        two_stage.train(run)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_constraints_with_a_maximum_of_zero_are_left_out():
    net = spaces.make(**runpy.run_path(str(CONFIG))["get_config"]().space.to_dict())
    settings = recipes.two_stage()
    assert two_stage.make_problem(net, settings).constraints == ()
    settings["constraints"]["flops"] = (0.0, 1e9)
    (limit,) = two_stage.make_problem(net, settings).constraints
    assert str(limit) == "0 <= flops <= 1e+09"
    assert two_stage.make_probes(settings["probes"]) is None
    assert not two_stage.is_wanted(recipes.two_stage("")) and two_stage.is_wanted(settings)
