"""Measures of a classifier, one file a section of the paper."""
