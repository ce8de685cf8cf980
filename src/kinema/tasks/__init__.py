"""Verbs: how a request becomes a canvas."""
