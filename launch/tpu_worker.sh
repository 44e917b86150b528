#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker, in its home directory, with the checkout in nasjax/:
#
#   tpu_worker.sh install [BUCKET]   makes the environment nasjax-venv; mounts BUCKET as /bucket
#   tpu_worker.sh run LAUNCHER ...   starts the launcher, or finds it under way; follows its log
#   tpu_worker.sh stop               lets the run save and leave
set -euo pipefail
script=$(realpath "$0")
cd

# The number in nasjax.pid may be another process's by now, so its command is looked at too.
signal_run() {
  pkill "-$1" --pidfile nasjax.pid --full nasjax-venv/bin/python 2>/dev/null
}

stop() {
  if signal_run TERM; then
    timeout 120 tail -s 0.1 -f --pid="$(cat nasjax.pid)" /dev/null || signal_run KILL || true
  fi
}

install() {
  # The images' own Python may be older than nasjax needs, so uv brings one.
  [[ -x .local/bin/uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
  .local/bin/uv venv --quiet --allow-existing --python 3.12 nasjax-venv
  .local/bin/uv pip install --quiet --python nasjax-venv/bin/python \
    --editable './nasjax[tpu,grain,images,quickstart]'
  if [[ -n ${1:-} ]]; then mount_bucket "$1"; fi
}

mount_bucket() {
  if findmnt --noheadings --output SOURCE /bucket | grep -qx "$1"; then return; fi
  command -v gcsfuse >/dev/null || install_gcsfuse
  sudo mkdir -p /bucket
  sudo chown "$(id -u)" /bucket
  # No metadata is cached: a worker has to see at once what another one has written.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" /bucket
}

install_gcsfuse() { # as cloud.google.com/storage/docs/cloud-storage-fuse/install says
  local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo apt-get -qq -y install gcsfuse
}

# Runs apart from the connection: setsid keeps signals of its terminal away.
start() {
  trap '' HUP
  cd nasjax
  NASJAX_DISTRIBUTED=1 setsid ../nasjax-venv/bin/python -u "$@" &
  echo $! >../nasjax.pid
  local status=0
  wait $! || status=$?
  echo "$status" >../nasjax.status
}

run() {
  # gcloud repeats a command whose connection broke; that must not start a second run.
  if ! signal_run 0; then
    rm -f nasjax.pid nasjax.status
    # In a session of its own, so that it outlives this one.
    setsid bash "$script" start "$@" </dev/null >nasjax.log 2>&1 &
    until [[ -s nasjax.pid ]]; do sleep 0.1; done
  fi
  tail -n +1 -s 0.1 -f --pid="$(cat nasjax.pid)" nasjax.log
  for _ in {1..50}; do
    if [[ -s nasjax.status ]]; then exit "$(cat nasjax.status)"; fi
    sleep 0.1
  done
  echo 'error: the run was killed; the same command again continues it.' >&2
  exit 1
}

case ${1:-} in
  install | run | start | stop) "$@" ;;
  *)
    echo 'error: install, run or stop was expected; launch/tpu_vm.sh calls this script.' >&2
    exit 2
    ;;
esac
