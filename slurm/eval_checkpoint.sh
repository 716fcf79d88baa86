#!/bin/bash
#SBATCH --job-name=eval_checkpoint
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out
# shellcheck source=slurm/lib.sh
source "${SMOLLM3_SCRIPTS:-slurm}/lib.sh" || exit
# CHECKPOINT: <run>/evaluations/<step>, from slurm/checkpoint_evaluations.py
begin eval_checkpoint "$@"
on_one_node "$PYTHON" -m smollm3 export --replace "$CHECKPOINT/checkpoint" "$JOB_MODEL"
suites=()
for suite in $JOB_SUITES; do
  suites+=(--suite "$suite")
done
and_then on_one_node "$EVAL_PYTHON" -m smollm3 eval "$JOB_RECIPE" --model "$JOB_MODEL" "${suites[@]}" \
  output="$CHECKPOINT/results"
and_then on_one_node "$PYTHON" -m smollm3 eval-checkpoint "$CHECKPOINT" --model "$JOB_MODEL"
finish
