"""Slurm: sbatch scripts, what they check before and after each attempt, and the chain of all stages."""
