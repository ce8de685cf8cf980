"""Schedules, parameterisations, samplers, guidance and windows: what every family samples and trains with."""
