"""The pocket model: an Open-Sora 2.0 with a codec and a text encoder that two CPU cores can train."""
