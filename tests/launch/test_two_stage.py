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
    """Architectures and their values, in order, without times; a torn last line is none."""
    path = workdir / "history.jsonl"
    lines = path.read_text().split("\n")[1:-1] if path.exists() else []
    entries = [json.loads(line) for line in lines]
    kept = [{n: v for n, v in entry.items() if n != "seconds"} for entry in entries]
    return [json.dumps(entry, sort_keys=True) for entry in kept]


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
        (
            {"searcher": {"name": "predictor", "predictor": {"bach": 4}}},
            "searcher 'predictor' cannot be made so: .*'bach'",
        ),
        ({"searcher": {"name": "predictor", "predictor": {"batch": 0}}}, "a batch of 0, 128 par"),
        ({"sampler": {"kind": "unifrom"}}, "no sampler 'unifrom'; did you mean 'uniform'"),
        (
            {"sampler": {"kind": "uniform", "limits": {"params": (0, 1)}}},
            "they go from 678 to 2,718",
        ),
        ({"sampler": {"kind": "uniform", "pahts": 2}}, "no key 'pahts'; did you mean 'paths'"),
        ({"leave_out": ("none",)}, "leave_out = .* is for a search by gradient"),
        ({"budget": {"cost": "params", "target": 1e3}}, r"budget\.target .* by gradient"),
        ({"searcher": {"name": "random", "evaluations": 0}}, "evaluations is 0; 1 or more"),
        ({"searcher": {"nmae": "random"}}, "searcher has no key 'nmae'; did you mean 'name'"),
        ({"evaluation": {"chunck": 1}}, "evaluation has no key 'chunck'; did you mean 'chunk'"),
        (
            {"constraints": {"params": (0, 700), "flops": (12_000, 13_000)}},
            "none of 10,000 random architectures",  # each alone is possible
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
    settings["constraints"]["flops"] = (2000.0, 0.0)  # a minimum alone
    (limit,) = two_stage.make_problem(net, settings).constraints
    assert str(limit) == "2,000 <= flops"
    assert two_stage.make_probes(settings["probes"]) is None
    assert not two_stage.is_wanted(recipes.two_stage("")) and two_stage.is_wanted(settings)


@pytest.mark.slow
def test_a_trained_super_network_is_searched_again_on_other_devices(whole, tmp_path):
    """Scored on the images that trained none of its weights, whatever the new run's seed."""
    extra = [f"--trained={whole}", "--config.seed=3", "--config.search.searcher.name=random"]
    finish(start(tmp_path, *OPTIONS, *extra, devices=2))
    assert not (tmp_path / "checkpoints" / "search").exists()
    known = {json.dumps(e["architecture"]): e for e in map(json.loads, history(whole))}
    again = [json.loads(line) for line in history(tmp_path)]
    both = [e for e in again if json.dumps(e["architecture"]) in known]
    assert len(again) == COUNT and both and again != list(known.values())
    for entry in both:
        before = known[json.dumps(entry["architecture"])]["values"]
        assert entry["values"] == pytest.approx(before, abs=0.01)  # an image may change sides
    changed = "--config.search.weights_fraction=0.6"
    where = ["--config", CONFIG, "--workdir", tmp_path / "other"]
    message = complain("search.py", *where, *OPTIONS, *extra, changed)
    assert "trained with search.weights_fraction = 0.5, but it is 0.6" in message
    where[-1] = tmp_path
    message = complain("search.py", *where, *OPTIONS, *extra[1:], "--trained=elsewhere")
    assert "holds a run of another configuration (search.trained was" in message


@pytest.mark.slow
def test_a_trained_super_network_is_searched_by_a_predictor(whole, tmp_path):
    """Of two objectives, and again as it was: the report says how well the predictor ranks."""
    extra = [
        f"--trained={whole}",
        "--config.search.searcher.name=predictor",
        "--config.search.searcher.predictor.batch=8",
        "--config.search.searcher.predictor.rounds=2",
        "--config.search.objectives=('accuracy','params')",
    ]
    finish(start(tmp_path, *OPTIONS, *extra))
    entries = [json.loads(line) for line in history(tmp_path)]
    assert len(entries) == COUNT and all(e["values"]["params"] <= 2500 for e in entries)
    front = json.loads((tmp_path / "pareto.json").read_text())
    assert [o["name"] for o in front["objectives"]] == ["accuracy", "params"]
    (line,) = rows(tmp_path, "predictor")
    assert line["objective"] == "accuracy" and line["fitted"] == line["architectures"] == 4
    page = (tmp_path / "report.html").read_text()
    assert "A random forest of 4 random architectures ranks 4 others by their accuracy" in page
    finish(start(tmp_path, *OPTIONS, *extra))
    assert rows(tmp_path, "predictor") == [line]


def test_an_architecture_of_a_pareto_set_is_read_by_its_number(whole):
    net = spaces.make(**json.loads((whole / "config.json").read_text())["space"])
    front = json.loads((whole / "pareto.json").read_text())["architectures"]
    assert experiment.read_arch(net, f"{whole}/pareto.json:1") == front[0]["architecture"]
    with pytest.raises(NasjaxError, match=f"has {len(front)} architectures, so 1 to {len(front)}"):
        experiment.read_arch(net, f"{whole}/pareto.json:{len(front) + 1}")
    with pytest.raises(NasjaxError, match="is no Pareto set"):
        experiment.read_arch(net, f"{whole}/arch.json:1")
