"""The video diffusion systems, one folder each."""
