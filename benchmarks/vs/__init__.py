"""Kinema beside diffusers: `python -m benchmarks.vs` measures both, by turns."""
