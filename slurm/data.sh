#!/bin/bash
#SBATCH --job-name=data
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=256G
#SBATCH --time=7-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
# shellcheck source=slurm/lib.sh
source "${SMOLLM3_SCRIPTS:-slurm}/lib.sh" || exit
begin data "$@"
rebuild=() # REBUILD="source ...", or all: prepared sources that may be replaced where they are not what is asked for
for source in ${REBUILD:-}; do rebuild+=(--rebuild "$source"); done
run_commands "${rebuild[@]}" "$@"
finish
