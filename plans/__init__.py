"""Plans for nnU-Net: which network, which checkpoint, which recipe."""
