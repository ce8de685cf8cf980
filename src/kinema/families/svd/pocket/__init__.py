"""The pocket model: an SVD configuration that two CPU cores can train."""
