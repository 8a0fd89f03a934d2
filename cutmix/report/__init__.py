"""The HTML page made from run folders; no torch."""
