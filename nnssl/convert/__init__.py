"""Weights of others, turned into checkpoints of ours."""
