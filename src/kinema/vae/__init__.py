"""Codecs between pixels and latents that have two users; others stay in their family."""
