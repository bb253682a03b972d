"""The Swin encoder, 2D and 3D."""
