"""Noise schedules, parameterisations, losses, samplers, guidance, windows and known regions, shared by all families."""
