"""Synthetic reasoning data: prompts of existing sets, answered by a teacher, as training rows for SFT or APO."""
