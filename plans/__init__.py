"""Plans of nnU-Net that carry a checkpoint."""
