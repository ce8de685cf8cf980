"""Codecs between pixels and latents that several families share; others are in their family's package."""
