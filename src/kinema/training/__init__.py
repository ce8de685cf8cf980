"""Training: the loop, EMA, checkpoints that survive."""
