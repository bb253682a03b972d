"""What is measured of finished runs: segmentation, features, attention, reuse."""
