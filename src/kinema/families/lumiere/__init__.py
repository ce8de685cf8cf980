"""Lumiere (Bar-Tal et al. 2024): a Space-Time U-Net inflated from a frozen image model."""
