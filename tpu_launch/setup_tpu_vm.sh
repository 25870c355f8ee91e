#!/usr/bin/env bash
# Prepares a fresh TPU VM (Ubuntu) for the commit that is checked out here; again, it only does what is missing.
#
#   setup_tpu_vm.sh [--extra tpu|cuda] [--bucket NAME --mount DIR]
#
# Python 3.11 or newer with nrt_jax in .venv, and the bucket mounted with Cloud Storage FUSE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extra=tpu bucket='' mount=''
while [ $# -gt 0 ]; do
  case "$1" in
    --extra) extra=$2 ;;
    --bucket) bucket=$2 ;;
    --mount) mount=$2 ;;
    *) echo "setup_tpu_vm.sh: found '$1', allowed: --extra, --bucket, --mount" >&2; exit 2 ;;
  esac
  shift 2
done

apt_install() {
  # A fresh VM upgrades itself in the background and holds apt's lock.
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@"
}

find_python() {
  local name
  for name in python3.13 python3.12 python3.11 python3; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
}

install_package() {
  # What is installed is named in a file that is written last: half an installation is done again.
  local wanted python
  wanted="$(git rev-parse HEAD) $extra"
  if [ "$(cat .venv/installed 2>/dev/null)" = "$wanted" ]; then return; fi
  python=$(find_python)
  if [ -z "$python" ]; then
    apt_install python3.11 python3.11-venv
    python=python3.11
  fi
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q -e ".[$extra,eval,gcs]"
  echo "$wanted" > .venv/installed
}

install_gcsfuse() {
  # cloud.google.com/storage/docs/cloud-storage-fuse/install
  if command -v gcsfuse > /dev/null; then return; fi
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt" \
    "gcsfuse-$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  apt_install gcsfuse
}

mount_bucket() {
  if mountpoint -q "$mount"; then return; fi
  install_gcsfuse
  mkdir -p "$mount"
  # Checkpoints are finished by renaming a directory. A bucket with a hierarchical namespace does so in one go, others
  # file by file and only up to this limit, which is 0 by default.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 "$bucket" "$mount"
}

install_package
if [ -n "$bucket" ]; then mount_bucket; fi
echo "$(hostname): ready"
