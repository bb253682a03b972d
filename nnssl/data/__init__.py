"""From raw scans to random crops; no torch.nn here."""
