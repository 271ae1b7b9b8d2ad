# What this cluster wants. Copy it to slurm/site.sh, which git ignores, and keep what applies:
#   cp slurm/site.example.sh slurm/site.sh
# It is read twice: by you before sbatch (`. slurm/site.sh`; the sweep does it itself), for the upper part, and by every job,
# for the lower part. What is given to sbatch on the command line holds against it.
# shellcheck shell=bash

# --- what the queue is told: environment variables that sbatch reads
export SBATCH_PARTITION=gpu
export SBATCH_ACCOUNT=my_project
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=08:00:00
# export SBATCH_GPUS_PER_NODE=1
# export SBATCH_CPUS_PER_TASK=8          # since SLURM 22.05; data workers run on these

# --- what a job needs before python starts
if [ -n "${SLURM_JOB_ID:-}" ]; then
    # module purge && module load python/3.11 cuda
    # shellcheck source=/dev/null
    . .venv/bin/activate                 # relative to the repository's root, where jobs start
    # export LIGHTNING_VL_DATA=/datasets
    # export WANDB_MODE=offline          # nodes without a network: sync from the login node
    # export NCCL_SOCKET_IFNAME=ib0      # where the nodes do not find each other
fi
