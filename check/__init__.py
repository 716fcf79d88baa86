"""What can be said of a profile before anything is queued: recipes, mixtures, windows. Nothing imports this package."""
