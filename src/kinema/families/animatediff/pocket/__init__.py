"""The pocket: a configuration of AnimateDiff that two cores can train, and its parts for the playroom."""
