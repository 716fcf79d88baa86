"""What is wrong with recipes, mixtures, windows or a machine, before anything is queued. Nothing imports this."""
