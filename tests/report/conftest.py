"""A small made-up run, as search and evaluation would have left it."""

import json
from pathlib import Path
from typing import Any

import pytest

CHOICES = [
    {"name": "embed_dim", "options": [32, 40, 48], "per": None},
    {"name": "depth", "options": [2, 3, 4], "per": None},
    {"name": "num_heads", "options": [2, 3, 4], "per": "blocks"},
    {"name": "mlp_ratio", "options": [2.0, 3.0, 4.0], "per": "blocks"},
]
ARCHITECTURE = {"embed_dim": 48, "depth": 3, "num_heads": [2, 3, 4], "mlp_ratio": [2.0, 4.0, 3.0]}
ROWS: list[dict[str, Any]] = [
    {
        "network": "found",
        "architecture": ARCHITECTURE,
        "params": 51234,
        "flops": 812345,
        "inherited": 0.93,
        "fine_tuned": 0.975,
        "retrained": 0.98,
    },
    {
        "network": "largest",
        "architecture": ARCHITECTURE,
        "params": 5_870_000,
        "flops": 1.34e9,
        "inherited": 0.94,
        "fine_tuned": None,
        "retrained": 0.983,
    },
    {
        "network": "random (mean of 5)",
        "params": 43000.0,
        "flops": 7e5,
        "inherited": 0.91,
        "inherited_std": 0.01,
        "fine_tuned": None,
        "retrained": 0.972,
        "retrained_std": 0.004,
    },
]


def _search_line(index: int) -> dict[str, Any]:
    sure = index / 20
    mixture = [(1 - sure) / 3, (1 - sure) / 3, (1 - sure) / 3 + sure]
    return {
        "phase": "search",
        "step": 100 * (index + 1),
        "epoch": index,
        "train_loss": 2.0 - 0.1 * index,
        "train_accuracy": 0.05 * index,
        "val_loss": 2.1 - 0.1 * index,
        "val_accuracy": 0.04 * index,
        "entropy": 1 - sure,
        "expected_params": 43000.0 + index,
        "expected_flops": 7e5,
        "learning_rate": 1e-3,
        "steps_per_second": 31.0,
        "architecture": {**ARCHITECTURE, "depth": 4, "num_heads": [4] * 4, "mlp_ratio": [4.0] * 4},
        "mixture": {
            "embed_dim": mixture,
            "depth": mixture,
            "num_heads": [mixture] * 4,
            "mlp_ratio": [mixture] * 4,
        },
    }


def _training_lines(phase: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"phase": phase, "step": 10 * i, "epoch": i, "train_loss": 1 / i, "train_accuracy": 0.1 * i}
        for i in range(1, 6)
    ]
    return [*lines, {"phase": phase, "step": 50, "test_accuracy": 0.97}]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of the result table of the run."""
    return [dict(row) for row in ROWS]


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """Working directory of a finished run."""
    phases = ["finetune", "retrain", "retrain/largest", "retrain/random_0", "retrain/random_1"]
    lines = [_search_line(i) for i in range(15)]
    lines += [line for phase in phases for line in _training_lines(phase)]
    result = {
        "space": {"name": "quickstart", "choices": CHOICES, "size": "123456"},
        "rows": ROWS,
        "samples": [
            {"architecture": {}, "params": 40000 + i, "flops": 6e5 + i, "accuracy": 0.9 + i / 1000}
            for i in range(8)
        ],
        "test_examples": 360,
        "versions": {"nasjax": "0.1.0", "jax": "0.10.2"},
        "device": "cpu",
    }
    arch = {"space": "quickstart", "architecture": ARCHITECTURE, "params": 51234, "flops": 812345}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "arch.json").write_text(json.dumps(arch))
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.json").write_text(json.dumps({"search": {"steps": 1500}}))
    return tmp_path
