"""Self-supervised pretraining of Swin encoders on raw CT, fine-tuned inside stock nnU-Net."""
