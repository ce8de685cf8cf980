"""The video diffusion model families, one folder each."""
