"""Layers with two users."""
