#!/bin/bash
# slurm/pretrain_stage1.sh with tests/slurm/trainer.py in place of the trainer.
#SBATCH --job-name=pretrain_stage1
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
source slurm/lib.sh || exit
begin pretrain_stage1 "$@"
torchrun_on_all_nodes tests.slurm.trainer "$JOB_RECIPE" "$@"
finish
