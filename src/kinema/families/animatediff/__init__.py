"""AnimateDiff (Guo et al. 2023): motion modules in a personalised image model."""
