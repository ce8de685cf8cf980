"""The pocket model: an AnimateDiff configuration that trains on two CPU cores, with its parts for the playroom."""
