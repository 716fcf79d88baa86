"""The jobs of a profile, which the local chain, Slurm and the report follow."""
