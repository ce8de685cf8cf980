"""The files that people have of AnimateDiff and its image models: recognised, opened, converted."""
