"""Metrics of a classifier; one module for each section of the paper."""
