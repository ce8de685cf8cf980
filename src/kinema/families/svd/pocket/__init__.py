"""The pocket: a configuration of SVD that two cores can train, and its parts."""
