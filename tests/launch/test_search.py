"""The launchers as a user runs them: killed, resumed, misused."""

import json
import os
import pathlib
import random
import runpy
import signal
import socket
import subprocess
import sys
import time

import experiment
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from nasjax import data, spaces
from nasjax.core.errors import NasjaxError
from nasjax.interop.autoformer import export_weights
from nasjax.train import phases

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name("tiny.py")
STEPS = 33


def command(script, *arguments):
    return [sys.executable, str(ROOT / "launch" / script), *map(str, arguments)]


def environment(devices=1):
    return {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
    }


def start(workdir, *extra, devices=1):
    arguments = command("search.py", "--config", CONFIG, "--workdir", workdir, *extra)
    return subprocess.Popen(
        arguments,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0):
    output, _ = process.communicate(timeout=400)
    assert process.returncode == status, output
    return output


def rows(workdir, phase="search"):
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        row.pop("steps_per_second", None)  # the only thing that may differ
        if row["phase"] == phase:
            found.append(row)
    return found


def run_and_kill(workdir, how, devices):
    """Start a search and interrupt it after a random number of logged steps."""
    process = start(workdir, devices=devices)
    after = random.randint(2, STEPS // 3 - 2)
    began = time.time()
    while len(rows(workdir)) < after and process.poll() is None:
        assert time.time() - began < 300
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(how)
    return process


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    made = {}

    def run(devices):
        if devices not in made:
            workdir = tmp_path_factory.mktemp(f"whole_{devices}")
            finish(start(workdir, devices=devices))
            made[devices] = workdir
        return made[devices]

    return run


@pytest.mark.parametrize(
    ("how", "devices"),
    [(signal.SIGKILL, 1), pytest.param(signal.SIGTERM, 1, marks=pytest.mark.slow)],
)
def test_interrupted_and_resumed_is_bit_identical(uninterrupted, tmp_path, how, devices):
    process = run_and_kill(tmp_path, how, devices)
    if how == signal.SIGKILL:
        process.communicate()
    else:
        output = finish(process, status=130)
        assert "run the same command again to continue" in output and "Traceback" not in output
    finish(start(tmp_path, devices=devices))
    whole = uninterrupted(devices)
    assert (tmp_path / "arch.json").read_bytes() == (whole / "arch.json").read_bytes()
    for phase in ("search", "finetune", "retrain"):
        assert rows(tmp_path, phase) == rows(whole, phase) != []


def test_a_finished_run_leaves_what_a_user_needs(uninterrupted):
    workdir = uninterrupted(1)
    arch = json.loads((workdir / "arch.json").read_text())
    assert arch["space"] == "vision_transformer" and arch["params"] > 0 and arch["flops"] > 0
    result = json.loads((workdir / "result.json").read_text())
    found = result["rows"][0]
    assert all(0 <= found[k] <= 1 for k in ("inherited", "fine_tuned", "retrained"))
    assert "<svg" in (workdir / "report.html").read_text()
    last = rows(workdir)[-1]
    assert last["step"] == STEPS
    for name in (
        "train_loss",
        "val_loss",
        "entropy",
        "expected_params",
        "learning_rate",
        "mixture",
    ):
        assert name in last


def sentence(process_output):
    assert "Traceback" not in process_output, process_output
    return next(x for x in process_output.splitlines() if x.startswith("error:"))


def complain(script, *arguments):
    done = subprocess.run(
        command(script, *arguments), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return sentence(done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--config.sedd=1", 'Did you mean "seed"'),
        ("--config.search.relaxation.name=drnass", "did you mean 'drnas'"),
        ("--config.space.quux=1", "no key 'quux'"),
        ("--config.search.recipe.batch_size=5000", "batch_size"),
    ],
)
def test_bad_configuration_is_one_sentence(tmp_path, override, expected):
    assert expected in complain("search.py", "--config", CONFIG, "--workdir", tmp_path, override)


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("space", "name", "vision_transfomer", "did you mean 'vision_transformer'"),
        ("data", "name", "digitz", "digits"),
        ("data", "name", "tfds:cifar10", "not prepared"),
        ("mesh", "model", 3, "mesh"),
    ],
)
def test_bad_configuration_is_refused_before_anything_runs(tmp_path, section, key, value, expected):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config[section][key] = value
    with pytest.raises(NasjaxError, match=expected):
        experiment.open_experiment(config, str(tmp_path / "run"))


def test_images_of_another_size_are_refused(tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.space.image_size = 16
    run = experiment.open_experiment(config, str(tmp_path))
    with pytest.raises(NasjaxError, match="built for"):
        phases.check_images(run.supernet, run.dataset, run.recipe("search").augmentation)


def test_a_directory_of_another_run_is_refused(uninterrupted):
    message = complain(
        "search.py", "--config", CONFIG, "--workdir", uninterrupted(1), "--config.seed=7"
    )
    assert "seed was 0, is 7" in message


def test_batch_must_divide_over_devices(tmp_path):
    output = finish(start(tmp_path, "--config.search.recipe.batch_size=60", devices=8), status=2)
    assert "60" in sentence(output) and "8 devices" in sentence(output)


def test_nan_loss_is_named(tmp_path):
    output = finish(
        start(tmp_path, "--config.search.recipe.optimizer.learning_rate=1e30"), status=2
    )
    message = sentence(output)
    assert (
        "not finite" in message and "learning rate" in message and "gradient of weights" in message
    )


def test_evaluate_and_train_take_what_search_found(uninterrupted, tmp_path):
    searched = uninterrupted(1)
    shared = ["--config", CONFIG, "--weights", searched, "--arch", searched / "arch.json"]
    done = subprocess.run(
        command("evaluate.py", *shared),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout.splitlines()[-1])
    found = json.loads((searched / "result.json").read_text())["rows"][0]
    assert printed["test_accuracy"] == found["inherited"]
    train = command("train.py", *shared, "--workdir", tmp_path, "--init", "inherit")
    subprocess.run(train, env=environment(), capture_output=True, check=True)
    network = json.loads((tmp_path / "network.json").read_text())
    assert network["architecture"] == found["architecture"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"space": "autoformer_t", "architecture": {}}))
    assert "space 'autoformer_t'" in complain(
        "evaluate.py", "--config", CONFIG, "--weights", searched, "--arch", wrong
    )
    illegal = tmp_path / "illegal.json"
    arch = {**found["architecture"], "embed_dim": 11}
    illegal.write_text(json.dumps({"space": "vision_transformer", "architecture": arch}))
    assert "the nearest is 12" in complain(
        "evaluate.py", "--config", CONFIG, "--weights", searched, "--arch", illegal
    )


@pytest.mark.slow
def test_a_search_can_begin_with_the_weights_of_another(uninterrupted, tmp_path):
    searched = uninterrupted(1)
    finish(
        start(
            tmp_path,
            f"--weights={searched}",
            "--config.search.recipe.epochs=1",
            "--config.search.recipe.warmup_epochs=0",
            "--config.search.recipe.optimizer.learning_rate=1e-12",
        )
    )
    first, second = (json.loads((d / "result.json").read_text()) for d in (searched, tmp_path))
    # Nothing was learnt, so random sub-networks have inherited what they had.
    assert second["samples"] == first["samples"] != []


@pytest.mark.slow
def test_a_search_in_stages_ends_in_one_architecture(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
    file = tmp_path / "data.npz"
    np.savez(
        file, x_train=images, y_train=np.arange(64) % 4, x_test=images, y_test=np.arange(64) % 4
    )
    config, workdir = CONFIG.with_name("tiny_stages.py"), tmp_path / "run"
    shared = ["--config", config, f"--config.data.name=npz:{file}"]
    done = subprocess.run(
        command("search.py", *shared, "--workdir", workdir),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in rows(workdir, "search_1")] == [2]
    last = rows(workdir)[-1]
    assert last["step"] == 4
    # Two operations of each edge are left, none of them "none".
    mixture = np.array(last["mixture"]["operation"])
    assert ((mixture > 0).sum(-1) == 2).all() and (mixture[:, 0] == 0).all()
    found = json.loads((workdir / "arch.json").read_text())
    done = subprocess.run(
        command("evaluate.py", *shared, "--weights", workdir, "--arch", workdir / "arch.json"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["architecture"] == found["architecture"]


def test_a_file_of_the_authors_weights_can_be_evaluated(tmp_path):
    """Exported as PyTorch names them, then read by the launcher."""
    config = runpy.run_path(str(CONFIG))["get_config"]().to_dict()
    supernet = spaces.make(**config["space"])
    variables = supernet.init(jax.random.key(0))
    exported = export_weights(variables, supernet)
    file = tmp_path / "supernet.safetensors"
    save_file({n: np.ascontiguousarray(x) for n, x in exported.items()}, file)
    done = subprocess.run(
        command("evaluate.py", "--config", CONFIG, "--weights", file, "--arch", "largest"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    digits = data.load("digits")
    images = data.normalize(digits.test.images, digits.mean, digits.std)
    logits = supernet.module.apply(variables, images)
    accuracy = float(np.mean(np.argmax(np.asarray(logits), -1) == digits.test.labels))
    assert printed["test_accuracy"] == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.slow
def test_a_whole_run_on_two_processes_is_that_of_one(tmp_path):
    """All phases, their evaluation and the report, with states that no process has whole."""
    rule = "--config.sharding=fully_sharded"
    finish(start(tmp_path / "one", rule, devices=8))
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = ["--config", CONFIG, "--workdir", tmp_path / "two", rule]
    processes = [
        subprocess.Popen(
            command("search.py", *arguments),
            env={
                **environment(devices=4),
                "NASJAX_DISTRIBUTED": "1",
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(i),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    first, second = (finish(process) for process in processes)
    assert "2 process(es)" in first and "Report:" in first and "Report:" not in second
    found, expected = (
        json.loads((tmp_path / name / "result.json").read_text())["rows"] for name in ("two", "one")
    )
    assert found[0]["architecture"] == expected[0]["architecture"]
    for row, other in zip(found, expected, strict=True):
        for name in ("inherited", "fine_tuned", "retrained"):
            assert row[name] == pytest.approx(other[name], abs=0.03), name
    for phase in ("search", "finetune", "retrain"):
        losses = [
            [row["train_loss"] for row in rows(tmp_path / name, phase) if "train_loss" in row]
            for name in ("two", "one")
        ]
        np.testing.assert_allclose(*losses, rtol=1e-3)
