"""Evaluation: the playroom oracle, temporal metrics, reports and plots."""
