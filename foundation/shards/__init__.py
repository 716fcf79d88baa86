"""Prepared token shards: the manifest of a source's folder, and how its files are read."""
