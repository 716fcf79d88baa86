#!/bin/bash
#SBATCH --job-name="eval"
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
# shellcheck source=slurm/lib.sh
source "${SMOLLM3_SCRIPTS:-slurm}/lib.sh" || exit
# MODEL: transformers folder, default the chain's last model; SUITE: some of the recipe's suites, default all
name="eval"
[[ ${SLURM_JOB_NAME:-} != eval_base ]] || name=eval_base
begin "$name" "$@"
export_model
PYTHON=$EVAL_PYTHON run_commands "$@"
finish
