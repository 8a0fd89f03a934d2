"""The training loop with its setup, state and tasks."""
