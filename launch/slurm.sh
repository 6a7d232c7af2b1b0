#!/usr/bin/env bash
# One run on several GPU nodes under SLURM, one process a node:
#
#   sbatch --nodes=8 --gpus-per-node=8 launch/slurm.sh --config=configs/progemu_8b.py --workdir=/shared/runs/8b
#
# The run directory must lie on a file system that all nodes see. SLURM sends SIGTERM two minutes before the time limit:
# every process saves at the same step and ends, and the job goes back into the queue and goes on from there.
#SBATCH --job-name=progemu
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

srun --kill-on-bad-exit=1 .venv/bin/python -m progemu_jax.main --multihost "$@"
status=$?
if [ "$status" -eq 143 ]; then # 128 + SIGTERM: saved, not done
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
