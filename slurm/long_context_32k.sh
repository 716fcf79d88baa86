#!/bin/bash
#SBATCH --job-name=long_context_32k
#SBATCH --nodes=12
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
# shellcheck source=slurm/lib.sh
source "${SMOLLM3_SCRIPTS:-slurm}/lib.sh" || exit
begin long_context_32k "$@"
torchrun_on_all_nodes nanotron_ext.train "$JOB_RECIPE" "$@"
finish
