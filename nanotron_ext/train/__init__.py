"""The training run: `torchrun ... -m nanotron_ext.train RECIPE.yaml [section.key=value ...]`."""
