#!/usr/bin/env bash
# Run a launcher on every worker of a Cloud TPU VM or pod:
#
#   launch/tpu_vm.sh [--dry-run] [--bucket BUCKET] NAME ZONE -- launch/search.py --config C \
#       --workdir DIR
#
# The checkout is copied to each worker and installed there, and the launcher runs on all of them,
# to its end, also when the connection breaks. A run still under way is stopped first, which saves
# it: the same command again continues a run, also on a new TPU after a preemption. DIR is an
# absolute path that all workers see; --bucket mounts a Cloud Storage bucket as /bucket. --dry-run
# prints the commands, one a line, and runs none. docs/clusters.md has the rest.
set -euo pipefail

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Arguments as a shell reads them back; %q would be unreadable.
quote() {
  local word words=''
  for word in "$@"; do
    if [[ -z $word || $word =~ [^A-Za-z0-9_./:=@%+,-] ]]; then
      word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'"
    fi
    words+="${words:+ }$word"
  done
  printf '%s' "$words"
}

usage='use launch/tpu_vm.sh [--dry-run] [--bucket BUCKET] NAME ZONE -- '
usage+='launch/search.py --config C --workdir DIR'
dry_run='' bucket=''
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --bucket)
      bucket=${2:-}
      [[ $bucket =~ ^[a-z0-9][a-z0-9._-]+$ ]] ||
        fail "--bucket '$bucket' is no name of a bucket; give it without gs:// and without a path."
      shift
      ;;
    --help | -h)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *) fail "there is no option $1; $usage." ;;
  esac
  shift
done
[[ $# -ge 3 ]] || fail "the TPU's name, its zone and a launcher are needed; $usage."
name=$1 zone=$2
shift 2
if [[ $1 == -- ]]; then shift; fi
root=$(cd "$(dirname "$0")/.." && pwd)
[[ ${1:-} != -* && -f $root/${1:-} ]] ||
  fail "there is no launcher '${1:-}' in this checkout; $usage."

workdir='' previous=''
for argument in "$@"; do
  if [[ $previous == --workdir ]]; then workdir=$argument; fi
  if [[ $argument == --workdir=* ]]; then workdir=${argument#*=}; fi
  previous=$argument
done
case $workdir in
  gs://*)
    fail "--workdir $workdir is no path; give --bucket BUCKET and --workdir /bucket/DIR."
    ;;
  /bucket | /bucket/*)
    [[ -n $bucket ]] ||
      fail "--workdir $workdir needs --bucket BUCKET, which says what to mount there."
    ;;
  /* | '') ;;
  *)
    fail "--workdir $workdir would be another directory on every worker; give an absolute path" \
      "that all of them see."
    ;;
esac

run() {
  if [[ -n $dry_run ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"
}

archive=nasjax.tar.gz
if [[ -z $dry_run ]]; then
  command -v gcloud >/dev/null || fail 'gcloud is not on the PATH; install the Google Cloud CLI.'
  directory=$(mktemp -d)
  trap 'rm -rf "$directory"' EXIT
  archive=$directory/$archive
fi
worker=nasjax/launch/tpu_worker.sh
run tar -czf "$archive" --exclude=.git --exclude=.venv --exclude=runs --exclude=__pycache__ \
  --exclude='*.egg-info' --exclude='.*_cache' -C "$root" .
run gcloud compute tpus tpu-vm scp "$archive" "$name:nasjax.tar.gz" --zone "$zone" --worker=all
on_all_workers "if [ -f $worker ]; then bash $worker stop; fi && rm -rf nasjax && mkdir nasjax"\
" && tar -xzf nasjax.tar.gz -C nasjax && bash $worker install${bucket:+ $bucket}"
on_all_workers "bash $worker run $(quote "$@")"
