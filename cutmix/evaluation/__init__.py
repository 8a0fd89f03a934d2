"""Metrics of a classifier, one module per subject."""
