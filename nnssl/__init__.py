"""Self-supervised pretraining of Swin encoders on raw CT, fine-tuned inside stock nnU-Net."""

from nnssl import conflict

__version__ = "0.1.0"

conflict.refuse()
