#!/usr/bin/env bash
# One run on every worker of a Cloud TPU slice:
#
#   launch/tpu_slice.sh NAME ZONE --config=configs/progemu_8b.py --workdir=/shared/runs/8b
#
# The checkout and its .venv (with `jax[tpu]` over the lock) lie in ~/progemu-jax of every worker, the run directory on a
# file system that all workers mount (Filestore, a bucket through Cloud Storage FUSE). Started again it goes on.
set -euo pipefail
name=${1:?name of the TPU} zone=${2:?zone}
shift 2
command="cd ~/progemu-jax && exec .venv/bin/python -m progemu_jax.main --multihost $(printf '%q ' "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
