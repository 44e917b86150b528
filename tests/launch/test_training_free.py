"""A search without training through the launcher, and the ranking of its scores."""

import json
import pathlib
import runpy

import experiment
import jax
import pytest
import ranking_proxies
import training_free

from nasjax.core.errors import NasjaxError
from nasjax.train.session import open_session

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tf_tas.py"
TINY = pathlib.Path(__file__).parent / "tiny.py"
COUNT = 12


def config(**changes):
    values = experiment.plain(runpy.run_path(str(CONFIG))["get_config"]("digits"))
    values["space"] = experiment.plain(runpy.run_path(str(TINY))["get_config"]())["space"]
    values["search"]["searcher"] |= {"evaluations": COUNT, "population": 4}
    values["search"]["constraints"]["params"] = (0.0, 2000.0)
    values["search"]["proxy"] |= {"top": 3, "batch_size": 8, **changes}
    values["retrain"] |= {"epochs": 0.2, "warmup_epochs": 0.0}
    return values


def opened(workdir, values):
    return experiment.open_experiment(values, workdir)


def test_scores_within_limits_best_first_and_none_twice(tmp_path):
    run = opened(tmp_path, config())
    found = training_free.search_untrained(run, None)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()[1:]
    entries = [json.loads(line) for line in lines]
    assert len({json.dumps(e["architecture"]) for e in entries}) == len(entries) == COUNT
    assert all(e["values"]["params"] <= 2000 for e in entries)
    top = json.loads((tmp_path / "top.json").read_text())["architectures"]
    values = sorted((e["values"]["dss"] for e in entries), reverse=True)
    assert [row["dss"] for row in top] == values[:3] and top[0]["architecture"] == found
    assert experiment.read_arch(run.supernet, f"{tmp_path}/top.json:2") == top[1]["architecture"]
    # Killed after some of them, it goes on and ends with the same.
    (tmp_path / "again").mkdir()
    text = (tmp_path / "history.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "again" / "history.jsonl").write_text("".join(text[:6]) + text[6][:20])
    (tmp_path / "again" / "config.json").write_text((tmp_path / "config.json").read_text())
    again = opened(tmp_path / "again", config())
    assert training_free.search_untrained(again, None) == found
    rest = (tmp_path / "again" / "history.jsonl").read_text().splitlines()[1:]
    same = (
        {json.dumps(json.loads(line)["architecture"]) for line in part} for part in (lines, rest)
    )
    assert next(same) == next(same)


def test_what_cannot_be_searched_is_said(tmp_path):
    values = config()
    values["search"]["constraints"]["params"] = (1.0, 2.0)
    with pytest.raises(NasjaxError, match=r"no architecture of space .* params <= 2; params goes"):
        training_free.search_untrained(opened(tmp_path / "limits", values), None)
    values = config()
    values["search"]["sampler"]["kind"] = "uniform"
    with pytest.raises(NasjaxError, match="names a sampler, which trains, and a proxy"):
        training_free.search_untrained(opened(tmp_path / "both", values), None)
    with pytest.raises(NasjaxError, match="no proxy 'gradsp'; did you mean 'grasp'"):
        training_free.search_untrained(opened(tmp_path / "name", config(name="gradsp")), None)
    with pytest.raises(NasjaxError, match="batch_size is 2000, but there are 1437"):
        wrong = config(name="naswot", batch_size=2000)
        training_free.search_untrained(opened(tmp_path / "batch", wrong), None)


def test_a_ranking_study_leaves_table_and_figure(tmp_path, capsys):
    job = {"weights": None, "networks": 3, "proxies": ["dss"], "seeds": 2, "bands": ["1000-2000"]}
    run = opened(tmp_path, {**config(), "ranking": job})
    found = ranking_proxies.study(run, None)
    first = [row for row in found["rows"] if row["band"] is None]
    assert [row["score"] for row in first] == ["dss", "params"]
    assert {row["truth"] for row in found["rows"]} == {"trained alone"}
    table = (tmp_path / "ranking.txt").read_text()
    assert (
        "Kendall's tau" in table
        and "1,000-2,000" in table
        and table.strip() in capsys.readouterr().out
    )
    assert (tmp_path / "ranking.svg").read_text().startswith("<svg")
    kept = (tmp_path / "alone_0.jsonl").read_text()
    again = ranking_proxies.study(run, None)  # nothing is trained twice
    assert again["rows"] == found["rows"] and (tmp_path / "alone_0.jsonl").read_text() == kept


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Eight virtual devices would score eight networks where one is asked for."""
    mesh = jax.make_mesh(
        (1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )  # fmt: skip
    monkeypatch.setattr(
        experiment,
        "open_session",
        lambda workdir, values, **rest: open_session(workdir, values, **{**rest, "mesh": mesh}),
    )
