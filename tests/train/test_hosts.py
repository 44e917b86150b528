"""Several processes as one run: the same numbers, stopped together, killed, and continued."""

import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from nasjax.train import sharding
from tests.toys import one_device
from tests.train.sharded import RULES, lines, searched
from tests.train.test_sharding import assert_same_run

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("sharded.py")


class Hosts:
    """Processes of one machine that run the search together, eight devices in all."""

    def __init__(self, folder, processes, rule, mesh, pause=0.0):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        shared = {
            **os.environ,
            "NASJAX_DISTRIBUTED": "1",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_NUM_CPU_DEVICES": str(8 // processes),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "launch")]),
        }
        command = [sys.executable, SCRIPT, folder, rule, *mesh, pause]
        self.processes = [
            subprocess.Popen(
                list(map(str, command)),
                env={**shared, "JAX_PROCESS_ID": str(i)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for i in range(processes)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            if not process.stdout.closed:
                process.communicate()

    def finish(self, status=0):
        outputs = [process.communicate(timeout=300)[0] for process in self.processes]
        found = [process.returncode for process in self.processes]
        assert found == [status] * len(found), "\n".join(outputs)
        return outputs

    def wait_for(self, condition):
        began = time.time()
        while not condition():
            assert time.time() - began < 300
            assert all(p.poll() is None for p in self.processes), self.finish()
            time.sleep(0.001)


def logged(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run of two processes that nothing happened to, and the architecture it printed."""
    folder = tmp_path_factory.mktemp("pair")
    with Hosts(folder, 2, "fully_sharded_tensor", (4, 2)) as hosts:
        archs = [json.loads(output.splitlines()[-1]) for output in hosts.finish()]
    assert archs[0] == archs[1]
    return folder, archs[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return folder, *searched(folder, sharding.REPLICATED, one_device())


def test_two_processes_search_as_one_device_does(pair, alone):
    assert pair[1] == alone[2]
    assert_same_run(lines(pair[0]), lines(alone[0]))


@pytest.mark.slow
def test_four_processes_search_as_one_device_does(alone, tmp_path):
    with Hosts(tmp_path, 4, "fully_sharded", (8, 1)) as hosts:
        outputs = hosts.finish()
    assert {output.splitlines()[-1] for output in outputs} == {json.dumps(alone[2])}
    assert_same_run(lines(tmp_path), lines(alone[0]))


def test_stopped_together_killed_while_saving_and_continued(pair, alone, tmp_path):
    folder = tmp_path / "run"
    arguments = (folder, 2, "fully_sharded_tensor", (4, 2))
    # One is told to stop: all stop after the same step, with nothing lost.
    with Hosts(*arguments, pause=0.2) as hosts:
        hosts.wait_for(lambda: logged(folder) >= 4)
        random.choice(hosts.processes).send_signal(signal.SIGTERM)
        outputs = hosts.finish(status=130)
    assert all("run the same command again to continue" in output for output in outputs)
    steps = {output.split("saved after step ")[1].split()[0] for output in outputs}
    assert len(steps) == 1
    assert (folder / "checkpoints" / "search" / steps.pop()).is_dir()
    # One dies while the state is being saved.
    with Hosts(*arguments, pause=0.05) as hosts:
        before = logged(folder)
        hosts.wait_for(
            lambda: logged(folder) > before and any(folder.glob("checkpoints/search/*tmp*"))
        )
        random.choice(hosts.processes).kill()
    shutil.copytree(folder, tmp_path / "copy")
    with Hosts(*arguments) as hosts:
        outputs = hosts.finish()
    assert json.loads(outputs[0].splitlines()[-1]) == pair[1]
    assert lines(folder) == lines(pair[0])
    # On other devices, by another rule, it continues to rounding.
    state, arch = searched(tmp_path / "copy", RULES["fully_sharded"], sharding.make_mesh(8, 1))
    assert arch == alone[2]
    assert_same_run(lines(tmp_path / "copy"), lines(alone[0]))
    np.testing.assert_allclose(
        state.weights["head"]["kernel"], alone[1].weights["head"]["kernel"], rtol=1e-5, atol=1e-6
    )
