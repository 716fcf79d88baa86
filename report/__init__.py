"""The report of a profile's chain, built from the files that its stages leave in the run folder."""
