"""What a clip is worth: the playroom oracle, metrics and reports."""
