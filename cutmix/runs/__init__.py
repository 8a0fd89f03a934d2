"""Run folders and result lines: written and read in one place."""
