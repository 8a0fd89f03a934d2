"""Train several methods with the same budget, splits and seeds, and say whether they differ by more than chance."""
