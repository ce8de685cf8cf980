"""Evidence for video models: one command trains small models, samples them, and compares them."""
