"""Use a trained classifier: load it, predict, export it to another runtime, publish it."""
