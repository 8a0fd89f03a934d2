"""Recipes, which decide the result of a run, and options, which do not; no torch."""
