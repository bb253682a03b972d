"""Third-party weights, turned into checkpoints of ours."""
