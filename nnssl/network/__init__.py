"""The fine-tuning network: Swin encoder, CNN decoder."""
