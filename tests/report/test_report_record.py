"""Runs are read back whatever state they are in."""

import json
from pathlib import Path

import pytest

from nasjax.report import Run


def test_reads_a_finished_run(workdir: Path) -> None:
    run = Run.load(workdir)
    assert run.notes == ()
    assert run.space_name == "quickstart"
    assert run.architecture["num_heads"] == [2, 3, 4]
    assert run.layers == {"num_heads": 4, "mlp_ratio": 4}
    assert run.phases[:3] == ("search", "finetune", "retrain")
    assert run.series("search", "entropy")[0][:2] == [100.0, 200.0]


def test_half_written_last_line_is_left_out(workdir: Path) -> None:
    path = workdir / "metrics.jsonl"
    whole = len(Run.load(workdir).metrics)
    # The cut also goes through the two bytes of a character.
    path.write_bytes(path.read_bytes() + '{"phase": "é'.encode()[:-1])
    run = Run.load(workdir)
    assert len(run.metrics) == whole
    assert run.notes == ()


def test_broken_line_in_the_middle_is_reported(workdir: Path) -> None:
    path = workdir / "metrics.jsonl"
    path.write_text('{"phase": "sea\n' + path.read_text())
    assert Run.load(workdir).notes == ("metrics.jsonl: unreadable lines skipped: 1.",)


def test_resumed_run_keeps_the_later_lines(tmp_path: Path) -> None:
    steps = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 2.0), (3, 1.0)]
    lines = [json.dumps({"phase": "search", "step": s, "train_loss": x}) for s, x in steps]
    lines.append(json.dumps({"phase": "search", "step": 3, "test_accuracy": 0.5}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = Run.load(tmp_path)
    assert run.series("search", "train_loss") == ([1.0, 2.0, 3.0], [5.0, 2.0, 1.0])
    assert run.series("search", "test_accuracy") == ([3.0], [0.5])


def test_nan_and_null_are_left_out_of_series(tmp_path: Path) -> None:
    start = '{"phase": "search", "step": '
    lines = [start + end for end in ('1, "val_loss": NaN}', '2, "val_loss": 1}')]
    lines.append(start + '3, "val_loss": null}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert Run.load(tmp_path).series("search", "val_loss") == ([2.0], [1.0])


def test_says_what_is_missing(tmp_path: Path) -> None:
    run = Run.load(tmp_path)
    assert [note.split()[0] for note in run.notes] == [
        "metrics.jsonl",
        "arch.json",
        "result.json",
        "config.json",
    ]
    assert run.rows == [] and run.choices == [] and run.architecture == {}


def test_half_written_json_is_reported(workdir: Path) -> None:
    (workdir / "result.json").write_text('{"rows": [')
    assert Run.load(workdir).notes == ("result.json cannot be read: it is not complete JSON.",)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run to report on"):
        Run.load(tmp_path / "nowhere")


def test_option_labels_come_from_the_log_before_there_are_results(workdir: Path) -> None:
    assert Run.load(workdir).option_labels("mlp_ratio", 3) == ["2", "3", "4"]
    (workdir / "result.json").unlink()
    assert Run.load(workdir).option_labels("mlp_ratio", 3) == ["option 1", "option 2", "4"]
