"""What a study compares: its description, read, checked and split."""
