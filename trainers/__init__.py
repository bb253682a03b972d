"""Thin nnU-Net trainer classes; nnU-Net imports each file by its bare name (documentation/nnunet.md)."""
