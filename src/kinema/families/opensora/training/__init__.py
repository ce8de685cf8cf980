"""Training of Open-Sora: published stages, masks, losses, text, and what a run writes."""
