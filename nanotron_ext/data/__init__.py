"""The mixture loader: which tokens a step trains on, as a pure function of the recipe and the step."""
