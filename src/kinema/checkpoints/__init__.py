"""Weights in and out of files: safe reading, key maps, the hub's cache."""
