#!/usr/bin/env bash
# Run a launcher on every worker of a Cloud TPU VM or pod.
#
#   launch/tpu_vm.sh NAME ZONE launch/search.py --config configs/gravite_cifar10.py --workdir /mnt/SHARED/run
#
# The checkout is copied to each worker and installed there; set DRY_RUN=1 to print the commands.
# The working directory must be one that all workers see. Started again after a preemption, the same command continues the run.
set -euo pipefail

if [[ $# -lt 3 ]]; then
  sed -n '2,8p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
remote=nasjax

run() {
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

on_all() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

on_all "rm -rf $remote"
run gcloud compute tpus tpu-vm scp --recurse "$root" "$name:$remote" --zone "$zone" --worker=all
on_all "cd $remote && python3 -m venv .venv && .venv/bin/pip install -q '.[tpu,grain,images,report]'"
on_all "cd $remote && NASJAX_DISTRIBUTED=1 .venv/bin/python $(printf '%q ' "$@")"
