#!/usr/bin/env python3
"""Run a launcher on TPU or GPU hosts of a GKE cluster, as a JobSet.

    python launch/gke.py --name NAME --image IMAGE --bucket BUCKET --tpu tpu-v6e-slice \\
        --topology 4x4 -- launch/search.py --config C --workdir /bucket/DIR
    python launch/gke.py --name NAME --image IMAGE --bucket BUCKET --gpu nvidia-h200-141gb \\
        --hosts 2 -- launch/search.py --config C --workdir /bucket/DIR

Fills in launch/gke_jobset.yaml and hands it to kubectl; with --dry-run it only prints it. A run of
that name that is still there is deleted first, which saves it: the same command again continues a
run. docs/clusters.md has the rest. Needs nothing but Python's standard library and kubectl.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

HERE = pathlib.Path(__file__).parent
PORT = 8476  # of the first host, where the others find each other


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        print(f"error: {message.removesuffix('.')}.", file=sys.stderr)
        sys.exit(2)


def make_parser() -> Parser:
    """The options before ``--``."""
    parser = Parser(
        prog="launch/gke.py",
        usage="%(prog)s [options] -- launch/search.py --config C --workdir /bucket/DIR",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, help="of the JobSet")
    add("--image", required=True, help="made with launch/gke.Dockerfile")
    add("--bucket", required=True, help="Cloud Storage bucket, mounted as /bucket")
    add("--tpu", metavar="TYPE", help="a value of the node label gke-tpu-accelerator")
    add("--topology", help="chips of the TPU slice, such as 4x4 or 2x2x2")
    add("--chips", type=int, help="TPU chips of a host (4, or all where there are fewer)")
    add("--gpu", metavar="TYPE", help="a value of the node label gke-accelerator")
    add("--gpus", type=int, default=8, help="GPUs of a host (8)")
    add("--hosts", type=int, help="GPU hosts (1); of a TPU the topology says how many")
    add("--spot", action="store_true", help="take Spot machines")
    add("--restarts", type=int, default=100, help="how often a run may start again (100)")
    add("--service-account", default="default", help="that may use the bucket (default)")
    add("--dry-run", action="store_true", help="print the manifest, run nothing")
    return parser


def check(parser: Parser, options: argparse.Namespace, command: Sequence[str]) -> None:
    """End with one sentence unless the options and the launcher's command fit together."""
    # Pods are called NAME-host-0-INDEX-xxxxx, in 63 letters.
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", options.name):
        parser.error(
            f"--name {options.name!r} is no name for Kubernetes; give at most 40 lowercase "
            "letters, digits and dashes, a letter first"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", options.bucket):
        parser.error(
            f"--bucket {options.bucket!r} is no name of a bucket; give it without gs:// and a path"
        )
    if bool(options.tpu) == bool(options.gpu):
        parser.error("one of --tpu TYPE and --gpu TYPE is needed")
    if options.tpu and options.hosts is not None:
        parser.error("--hosts is for GPUs; of a TPU --topology says how many hosts there are")
    if options.gpu and (options.topology or options.chips):
        parser.error("--topology and --chips are for TPUs; GPUs take --gpus and --hosts")
    for name in ("chips", "gpus", "hosts", "restarts"):
        if getattr(options, name) is not None and getattr(options, name) < (name != "restarts"):
            parser.error(f"--{name} {getattr(options, name)} is too few")
    if not command:
        parser.error("after -- a launcher is expected, such as launch/search.py --config C")
    if not (HERE.parent / command[0]).is_file():
        parser.error(f"there is no launcher {command[0]!r} in this checkout")
    workdir = Parser(add_help=False, allow_abbrev=False)
    workdir.add_argument("--workdir", default="/bucket/")
    given = workdir.parse_known_args(command[1:])[0].workdir
    if not given.startswith("/bucket/"):
        parser.error(
            f"--workdir {given} is lost with its pod; give a directory of the bucket, /bucket/DIR"
        )


def tpu_hosts(parser: Parser, options: argparse.Namespace) -> tuple[int, int]:
    """Hosts of the slice and chips of each."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", options.topology or ""):
        parser.error(f"--topology {options.topology!r} is none; give one such as 4x4 or 2x2x2")
    total = math.prod(map(int, options.topology.split("x")))
    chips = options.chips or min(4, total)
    if total % chips:
        parser.error(f"the {total} chips of {options.topology} are no multiple of --chips {chips}")
    return total // chips, chips


def fill(parser: Parser, options: argparse.Namespace, command: Sequence[str]) -> str:
    """The manifest, as YAML."""
    if options.tpu:
        hosts, devices = tpu_hosts(parser, options)
        selector = {
            "cloud.google.com/gke-tpu-accelerator": options.tpu,
            "cloud.google.com/gke-tpu-topology": options.topology,
        }
        limits = {"google.com/tpu": devices}
    else:
        hosts, devices = options.hosts or 1, options.gpus
        selector = {"cloud.google.com/gke-accelerator": options.gpu}
        limits = {"nvidia.com/gpu": devices}
    annotations, tolerations = {}, []
    if options.tpu and hosts > 1:
        # The hosts of a slice are a node pool; another pool may be of the same kind.
        annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
    if options.spot:
        spot = "cloud.google.com/gke-spot"
        selector[spot] = "true"
        tolerations.append({"key": spot, "value": "true", "effect": "NoSchedule"})
    values = {
        "name": options.name,
        "annotations": annotations,
        "restarts": options.restarts,
        "hosts": hosts,
        "service_account": options.service_account,
        "node_selector": selector,
        "tolerations": tolerations,
        "image": options.image,
        # Kubernetes would put variables for $(NAME).
        "command": ["python", "-u", *(word.replace("$(", "$$(") for word in command)],
        "environment": environment(options, hosts, devices),
        "limits": limits,
        "bucket": options.bucket,
    }
    template = string.Template((HERE / "gke_jobset.yaml").read_text())
    return template.substitute({name: json.dumps(value) for name, value in values.items()})


def environment(options: argparse.Namespace, hosts: int, devices: int) -> list[dict[str, Any]]:
    """Variables by which the hosts find each other.

    On a TPU JAX finds them in variables that GKE sets; elsewhere on Kubernetes it would have to ask
    the cluster, for which a pod has no rights.
    """
    if hosts == 1:
        return []
    values = {"NASJAX_DISTRIBUTED": "1"}
    if options.tpu:
        return [{"name": name, "value": value} for name, value in values.items()]
    values["JAX_COORDINATOR_ADDRESS"] = f"{options.name}-host-0-0.{options.name}:{PORT}"
    values["JAX_NUM_PROCESSES"] = str(hosts)
    values["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(devices)))
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        *({"name": name, "value": value} for name, value in values.items()),
        {"name": "JAX_PROCESS_ID", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def main(arguments: Sequence[str]) -> int:
    """Print or apply the manifest; the exit status."""
    parser = make_parser()
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser.parse_args(arguments[:split]), arguments[split + 1 :]
    check(parser, options, command)
    manifest = fill(parser, options, command)
    if options.dry_run:
        print(manifest, end="")
        return 0
    if shutil.which("kubectl") is None:
        parser.error("kubectl is not on the PATH; install it, or print the manifest with --dry-run")
    # A JobSet cannot be changed once it runs. In the foreground: its pods have then saved and left.
    earlier = ["kubectl", "delete", "jobset", options.name]
    deleted = subprocess.run([*earlier, "--ignore-not-found", "--cascade=foreground"])
    if deleted.returncode:
        return deleted.returncode
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
