"""Everything that runs under torchrun in pretraining, on nanotron's 3D parallelism."""
