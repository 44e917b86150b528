"""The launchers of clusters; programs that note their arguments stand for gcloud and the like."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import gke
import process
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# An argument for each way in which a shell may misread one.
LAUNCHER = ["launch/search.py", "--config", "configs/it's a $HOME; *.py", '--x="1"', ""]
NOTE = (
    f"#!{sys.executable} -SE"
    + """
import json, os, pathlib, sys
call = {"arguments": sys.argv[1:], "input": "" if sys.stdin.isatty() else sys.stdin.read()}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([pathlib.Path(sys.argv[0]).name, call]) + "\\n")
"""
)


class Machine:
    """A PATH with chosen programs, and what was called of them."""

    def __init__(self, directory):
        self.programs, self.log = directory / "bin", directory / "calls"
        self.programs.mkdir()
        self.environment = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "JAX_"))},
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "CALLS": str(self.log),
        }

    def install(self, name, then="", script=None):
        path = self.programs / name
        path.write_text(NOTE + then if script is None else script)
        path.chmod(0o755)

    def calls(self, name):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [call for found, call in map(json.loads, lines) if found == name]

    def run(self, *command, status=0, **environment):
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, done
        return done


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def tpu(*arguments):
    return ("bash", LAUNCH / "tpu_vm.sh", *arguments)


def slurm(*arguments):
    return ("bash", LAUNCH / "slurm.sbatch", *arguments)


def on_gke(*arguments, launcher=("launch/search.py", "--workdir", "/bucket/r")):
    options = ("--name", "run", "--image", "an/image:1", "--bucket", "data", *arguments)
    return [*map(str, options), "--", *launcher]


MISUSE = {
    "TPU without launcher": (tpu("n", "z"), "are needed"),
    "TPU, unknown option": (tpu("--dryrun", "n", "z", "--", "launch/search.py"), "--dryrun"),
    "TPU, no such launcher": (tpu("n", "z", "--", "launch/serch.py"), "launch/serch.py"),
    "TPU, a bucket for a path": (
        tpu("n", "z", "--", "launch/search.py", "--workdir", "gs://b/r"),
        "--bucket BUCKET",
    ),
    "TPU, a directory of one worker": (
        tpu("n", "z", "launch/search.py", "--workdir=runs/r"),
        "absolute path",
    ),
    "TPU, a bucket that is not mounted": (
        tpu("n", "z", "launch/search.py", "--workdir=/bucket/r"),
        "--bucket BUCKET",
    ),
    "TPU, a path for a bucket": (
        tpu("--bucket", "gs://b", "n", "z", "launch/search.py"),
        "without gs://",
    ),
    "TPU without gcloud": (tpu("n", "z", "launch/search.py"), "gcloud is not on the PATH"),
    "Slurm without launcher": (slurm(), "a launcher is needed"),
    "Slurm, unknown option": (slurm("--dryrun", "launch/search.py"), "--dryrun"),
    "Slurm, no such launcher": (slurm("search.py"), "root of the checkout"),
    "Slurm, a bucket for a path": (
        slurm("launch/search.py", "--workdir", "gs://b/r"),
        "gs://b/r is no path",
    ),
    "Slurm without srun": (slurm("launch/search.py"), "srun is not on the PATH"),
    "GKE without kubectl": (
        (sys.executable, LAUNCH / "gke.py", *on_gke("--gpu", "g")),
        "kubectl is not on the PATH",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_sentence(machine, case):
    command, words = MISUSE[case]
    if "without" in case:  # whatever this machine has
        for name in ("bash", "cat", "dirname", "mktemp", "rm", "sed"):
            (machine.programs / name).symlink_to(shutil.which(name))
        machine.environment["PATH"] = str(machine.programs)
    done = machine.run(*command, status=2)
    assert done.stdout == "" and done.stderr.count("\n") == 1, done
    assert done.stderr.startswith("error: ") and done.stderr.endswith(".\n")
    assert words in done.stderr


# TPU VMs. The fake gcloud has two workers: directories, in which it runs what it is told to.

GCLOUD = """
import shutil, subprocess
*_, action, target = sys.argv[1:6]
option = lambda name: sys.argv[sys.argv.index(name) + 1]
assert sys.argv[1:4] == ["compute", "tpus", "tpu-vm"] and "--worker=all" in sys.argv
workers = sorted(pathlib.Path(os.environ["WORKERS"]).iterdir())
if action == "scp":
    for home in workers:
        shutil.copy(target, home / sys.argv[6].split(":")[1])
else:
    shells = [
        subprocess.Popen(
            ["bash", "-c", option("--command")], cwd=home, env={**os.environ, "HOME": str(home)}
        )
        for home in workers
    ]
    sys.exit(max([shell.wait() for shell in shells]))
"""
# uv installs this in place of Python: it says how it was called, and may wait to be stopped.
UV = """#!/bin/bash
if [[ $1 == venv ]]; then
  mkdir -p nasjax-venv/bin
  cp "$HOME/python" nasjax-venv/bin/python
fi
echo "$*" >>uv.log
"""
PYTHON = """#!/bin/bash
trap 'echo saved; exit 130' TERM
echo "distributed=$NASJAX_DISTRIBUTED in ${PWD##*/}"
printf '<%s>' "${@:2}"
echo
if [[ -n ${WAIT:-} ]]; then
  for _ in {1..600}; do sleep 0.1; done
fi
exit "${STATUS:-0}"
"""


@pytest.fixture
def pod(machine, tmp_path):
    for worker in ("worker0", "worker1"):
        (tmp_path / "workers" / worker / ".local" / "bin").mkdir(parents=True)
        home = tmp_path / "workers" / worker
        for path, script in ((home / ".local" / "bin" / "uv", UV), (home / "python", PYTHON)):
            path.write_text(script)
            path.chmod(0o755)
    machine.install("gcloud", GCLOUD)
    machine.homes = sorted((tmp_path / "workers").iterdir())
    machine.environment["WORKERS"] = str(tmp_path / "workers")
    return machine


def test_tpu_dry_run_prints_commands_that_a_shell_reads_back(machine):
    arguments = ["--bucket", "data", "me@pod", "us-east5-b", "--", *LAUNCHER]
    printed = machine.run(*tpu("--dry-run", *arguments)).stdout.splitlines()
    commands = [shlex.split(line) for line in printed]
    assert [c[0] for c in commands] == ["tar", "gcloud", "gcloud", "gcloud"]
    for command in commands[1:]:
        assert command[1:4] == ["compute", "tpus", "tpu-vm"]
        assert "--worker=all" in command and command[command.index("--zone") + 1] == "us-east5-b"
    assert commands[1][5:7] == ["nasjax.tar.gz", "me@pod:nasjax.tar.gz"]
    assert commands[2][-1].endswith("install data")
    last = shlex.split(commands[3][-1])
    assert last == ["bash", "nasjax/launch/tpu_worker.sh", "run", *LAUNCHER]
    assert machine.calls("gcloud") == []


def test_tpu_installs_and_runs_on_every_worker(pod):
    done = pod.run(*tpu("pod", "zone", "--", *LAUNCHER))
    said = "distributed=1 in nasjax\n" + "".join(f"<{word}>" for word in LAUNCHER) + "\n"
    for home in pod.homes:
        assert (home / "nasjax.log").read_text() == said
        assert "--editable ./nasjax[tpu," in (home / "uv.log").read_text()
        for name in ("setup.py", "nasjax/__init__.py", "configs/quickstart.py", LAUNCHER[0]):
            assert (home / "nasjax" / name).read_text() == (ROOT / name).read_text()
        assert not (home / "nasjax" / ".git").exists()
    assert done.stdout.count("distributed=1") == 2
    assert [call["arguments"][3] for call in pod.calls("gcloud")] == ["scp", "ssh", "ssh"]


def test_tpu_says_that_a_worker_failed(pod):
    pod.run(*tpu("pod", "zone", "--", *LAUNCHER), status=3, STATUS="3")


def test_tpu_run_outlives_its_connection_and_is_stopped_before_the_next(pod):
    command = list(map(str, tpu("pod", "zone", "--", *LAUNCHER)))
    first = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**pod.environment, "WAIT": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    logs = [home / "nasjax.log" for home in pod.homes]
    began = time.time()
    while not all(log.exists() and log.read_text().endswith(">\n") for log in logs):
        assert first.poll() is None and time.time() - began < 30
        time.sleep(0.02)
    processes = [int((home / "nasjax.pid").read_text()) for home in pod.homes]
    try:
        # The connection breaks. Not Ctrl-C, which what runs in the background may ignore.
        os.killpg(first.pid, signal.SIGTERM)
        first.wait(timeout=30)
        for process in processes:
            os.kill(process, 0)  # is still there
        # What gcloud repeats when a connection broke follows the run that there is.
        first_home = {**pod.environment, "HOME": str(pod.homes[0])}
        worker = ["bash", str(LAUNCH / "tpu_worker.sh")]
        follower = subprocess.Popen([*worker, "run", "launch/other.py"], env=first_home)
        pod.run(*worker, "stop", HOME=first_home["HOME"])
        assert follower.wait(timeout=30) == 130
        assert logs[0].read_text().endswith("saved\n")
        pod.run(*command)
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)
    finally:
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
    assert all("saved" not in log.read_text() for log in logs)  # these are of the second run


def test_tpu_worker_mounts_the_bucket_once(pod):
    pod.install("sudo")
    pod.install("gcsfuse", "pathlib.Path(os.environ['HOME'], 'mounted').write_text(sys.argv[-2])")
    pod.install("findmnt", script='#!/bin/sh\ncat "$HOME/mounted" 2>/dev/null\n')
    home = str(pod.homes[0])
    for _ in range(2):
        pod.run("bash", LAUNCH / "tpu_worker.sh", "install", "data", HOME=home)
    mounts = [call["arguments"] for call in pod.calls("gcsfuse")]
    assert mounts == [["--implicit-dirs", "--metadata-cache-ttl-secs=0", "data", "/bucket"]]


# Slurm.

JOB = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8"}


def test_slurm_dry_run_prints_the_line_that_a_job_runs(machine):
    machine.install("srun")
    arguments = ("--", *LAUNCHER)
    (line,) = machine.run(*slurm("--dry-run", *arguments), **JOB).stdout.splitlines()
    assert machine.calls("srun") == []
    machine.run(*slurm(*arguments), **JOB)
    (call,) = machine.calls("srun")
    assert shlex.split(line) == ["srun", *call["arguments"]]
    assert call["arguments"][-len(LAUNCHER) - 2 :] == ["python", "-u", *LAUNCHER]
    assert "--cpus-per-task=64" in call["arguments"]


@pytest.mark.parametrize(
    "gpus", [{"SLURM_GPUS_ON_NODE": "4"}, {"SLURM_GPUS_PER_NODE": "h200:4"}], ids=["on", "per"]
)
def test_slurm_gives_each_node_one_process_with_all_of_its_gpus(machine, gpus):
    show = "print(*(os.environ[n] for n in ('NASJAX_DISTRIBUTED', 'JAX_LOCAL_DEVICE_IDS')))"
    machine.install("srun", show)
    done = machine.run(*slurm("launch/search.py"), SLURM_NNODES="3", **gpus)
    assert done.stdout == "1 0,1,2,3\n"
    (call,) = machine.calls("srun")
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} < set(call["arguments"])


def test_slurm_needs_to_know_the_gpus_of_several_nodes(machine):
    done = machine.run(*slurm("launch/search.py"), status=2, SLURM_NNODES="2")
    assert "--gpus-per-node=N" in done.stderr


@pytest.mark.parametrize("status", [0, 1, 2, 130, 137, 143])
def test_slurm_queues_only_a_run_that_was_stopped_again(machine, status):
    machine.install("srun", f"sys.exit({status})")
    machine.install("scontrol", "sys.exit(1)")  # as where the job may not be queued again
    machine.run(*slurm("launch/search.py"), status=status, **JOB)
    queued = [call["arguments"] for call in machine.calls("scontrol")]
    assert queued == [["requeue", "7"]] * (status in (130, 143))


def test_slurm_signals_the_run_and_not_the_script():
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH ")
    )
    name, seconds = options["signal"].split("@")
    assert name == "TERM" and int(seconds) >= 60
    assert "requeue" in options and options["open-mode"] == "append"


# GKE.

GKE_MISUSE = {
    "without name": (["--", "launch/search.py"], "--name"),
    "a bad name": (on_gke("--name", "Run_1", "--tpu", "t"), "lowercase letters"),
    "a path for a bucket": (on_gke("--bucket", "gs://b", "--tpu", "t"), "without gs://"),
    "no accelerator": (on_gke(), "--tpu TYPE and --gpu TYPE"),
    "two accelerators": (on_gke("--tpu", "t", "--gpu", "g"), "--tpu TYPE and --gpu TYPE"),
    "no topology": (on_gke("--tpu", "t"), "such as 4x4"),
    "a bad topology": (on_gke("--tpu", "t", "--topology", "4"), "such as 4x4"),
    "chips that do not fit": (
        on_gke("--tpu", "t", "--topology", "4x4", "--chips", "3"),
        "no multiple of --chips 3",
    ),
    "hosts of a TPU": (on_gke("--tpu", "t", "--topology", "4x4", "--hosts", "4"), "--hosts"),
    "topology of GPUs": (on_gke("--gpu", "g", "--topology", "4x4"), "--gpus and --hosts"),
    "no hosts": (on_gke("--gpu", "g", "--hosts", "0"), "--hosts 0"),
    "hosts in words": (on_gke("--gpu", "g", "--hosts", "two"), "'two'"),
    "without launcher": (on_gke("--gpu", "g", launcher=()), "after --"),
    "no such launcher": (on_gke("--gpu", "g", launcher=["search.py"]), "search.py"),
    "a directory of one pod": (
        on_gke("--gpu", "g", launcher=["launch/search.py", "--workdir=runs/r"]),
        "/bucket/DIR",
    ),
}


@pytest.mark.parametrize("case", GKE_MISUSE)
def test_gke_misuse_is_one_sentence(capsys, case):
    arguments, words = GKE_MISUSE[case]
    with pytest.raises(SystemExit) as stopped:
        gke.main(arguments)
    said = capsys.readouterr()
    assert stopped.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and said.err.endswith(".\n") and words in said.err


def manifest(capsys, *arguments, **options):
    assert gke.main(on_gke("--dry-run", *arguments, **options)) == 0
    (found,) = yaml.safe_load_all(capsys.readouterr().out)
    (job,) = found["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert found["metadata"]["name"] == "run" and container["image"] == "an/image:1"
    return found, job, pod, container


@pytest.mark.parametrize(
    ("topology", "chips", "hosts", "each"),
    [
        ("1x1", [], 1, 1),
        ("2x2", [], 1, 4),
        ("2x4", [], 2, 4),
        ("2x4", ["--chips", "8"], 1, 8),
        ("4x4", [], 4, 4),
        ("2x2x1", [], 1, 4),
        ("4x4x8", [], 32, 4),
    ],
)
def test_gke_counts_the_hosts_of_a_tpu(capsys, topology, chips, hosts, each):
    found, job, pod, container = manifest(
        capsys, "--tpu", "tpu-v6e-slice", "--topology", topology, *chips
    )
    assert job["completions"] == job["parallelism"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": each}
    assert set(pod["nodeSelector"].values()) == {"tpu-v6e-slice", topology}
    # GKE tells the hosts of a TPU where the others are.
    variables = [] if hosts == 1 else [{"name": "NASJAX_DISTRIBUTED", "value": "1"}]
    assert container["env"] == variables
    assert bool(found["metadata"]["annotations"]) == (hosts > 1)


@pytest.mark.parametrize("hosts", [1, 3])
def test_gke_tells_gpu_hosts_where_the_first_one_is(capsys, hosts):
    _, job, pod, container = manifest(
        capsys, "--gpu", "nvidia-h200-141gb", "--hosts", hosts, "--gpus", 2, "--spot"
    )
    assert job["completionMode"] == "Indexed" and job["completions"] == hosts
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true" and pod["tolerations"]
    values = {v["name"]: v.get("value") for v in container["env"]}
    if hosts == 1:
        assert values == {}
        return
    assert values == {
        "NASJAX_DISTRIBUTED": "1",
        "JAX_COORDINATOR_ADDRESS": "run-host-0-0.run:8476",
        "JAX_NUM_PROCESSES": "3",
        "JAX_LOCAL_DEVICE_IDS": "0,1",
        "JAX_PROCESS_ID": None,
    }
    (number,) = (v["valueFrom"] for v in container["env"] if v["name"] == "JAX_PROCESS_ID")
    assert "job-completion-index" in number["fieldRef"]["fieldPath"]


def test_gke_hosts_join_by_these_variables(capsys, monkeypatch):
    _, _, _, container = manifest(capsys, "--gpu", "g", "--hosts", 3)
    joined = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: joined.update(given))
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "2"))
    process.join_hosts()
    assert joined == {"num_processes": 3, "process_id": 2}


def test_gke_starts_again_what_was_preempted_but_not_what_was_wrong(capsys):
    found, job, pod, container = manifest(capsys, "--gpu", "g", "--restarts", 5)
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 5
    (rule,) = policy["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"


def test_gke_mounts_the_bucket_and_quotes_the_command(capsys):
    launcher = [*LAUNCHER, "--workdir", "/bucket/r", "$(HOME)"]
    _, _, pod, container = manifest(capsys, "--gpu", "g", launcher=launcher)
    # Kubernetes reads $$( as $(.
    assert [w.replace("$$(", "$(") for w in container["command"]] == ["python", "-u", *launcher]
    assert "$(HOME)" not in [w.replace("$$", "") for w in container["command"]]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["bucket"]["csi"]["volumeAttributes"]["bucketName"] == "data"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"bucket": "/bucket", "shared-memory": "/dev/shm"}
    assert set(mounts) == set(volumes)


def test_gke_replaces_an_earlier_run_of_the_name(machine):
    machine.install("kubectl")
    script = (sys.executable, LAUNCH / "gke.py")
    arguments = on_gke("--tpu", "tpu-v5p-slice", "--topology", "2x2x2")
    printed = machine.run(*script, "--dry-run", *arguments).stdout
    assert machine.calls("kubectl") == []
    machine.run(*script, *arguments)
    delete, apply = machine.calls("kubectl")
    assert delete["arguments"][:3] == ["delete", "jobset", "run"]
    assert "--ignore-not-found" in delete["arguments"]
    assert apply == {"arguments": ["apply", "-f", "-"], "input": printed}


def test_gke_applies_nothing_where_the_earlier_run_cannot_be_deleted(machine):
    machine.install("kubectl", "sys.exit(1)")
    machine.run(sys.executable, LAUNCH / "gke.py", *on_gke("--gpu", "g"), status=1)
    assert len(machine.calls("kubectl")) == 1
