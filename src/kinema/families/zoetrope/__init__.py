"""Zoetrope: Kinema's embedded model, a small token transformer over space-time patches of pixels."""
