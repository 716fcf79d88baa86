"""What all parts of the pipeline share: errors, recipes, shards, journals, charts. It imports no other part."""
