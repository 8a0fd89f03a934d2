"""Recipes and options as values: what a run computes, and how it is run; no torch."""
