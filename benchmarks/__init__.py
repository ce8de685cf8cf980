"""Measurements of speed, memory and quality, each a script of its own."""
