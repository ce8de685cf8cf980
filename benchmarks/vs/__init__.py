"""Kinema against diffusers: `python -m benchmarks.vs` measures both in alternating runs."""
