"""Training: the loop, EMA, data and resumable checkpoints."""
