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
shopt -s nullglob # a profile need not have long-context phases
rebuild=() # REBUILD="source ...", or all: prepared sources that may be replaced where they are not what is asked for
for source in ${REBUILD:-}; do rebuild+=(--rebuild "$source"); done
on_one_node "$PYTHON" -m smollm3 data "$JOB_RECIPE" "$RECIPES"/long_context_*.yaml "${rebuild[@]}" "$@"
edition=full # the real sets, which needs a network
if [[ $PROFILE == tiny ]]; then
  edition=small
  and_then on_one_node "$PYTHON" -m smollm3 posttrain-data --profile "$RECIPES"
fi
if [[ -f $RECIPES/eval.yaml ]]; then
  and_then on_one_node "$PYTHON" -m smollm3 eval-data --profile "$RECIPES" --edition "$edition"
fi
finish
