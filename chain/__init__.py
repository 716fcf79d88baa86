"""The whole chain of a profile on this machine, from text to the report."""
