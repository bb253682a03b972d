"""Measured comparisons, one file each; ratios side by side in one run."""
