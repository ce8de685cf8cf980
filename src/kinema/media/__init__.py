"""Clips and pictures in and out of files; the only place where pixels are uint8 THWC."""
