"""Stable Video Diffusion (Blattmann et al. 2023): image to video in latent space."""
