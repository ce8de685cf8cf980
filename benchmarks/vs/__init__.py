"""Kinema beside diffusers: what `vs_diffusers.py` measures, and how."""
