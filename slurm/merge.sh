#!/bin/bash
#SBATCH --job-name=merge
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
# shellcheck source=slurm/lib.sh
source "${SMOLLM3_SCRIPTS:-slurm}/lib.sh" || exit
begin merge "$@"
run_commands "$@"
finish
