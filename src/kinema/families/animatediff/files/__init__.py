"""Weight files of AnimateDiff and its image models: recognition, opening and conversion."""
