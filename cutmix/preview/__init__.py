"""Images of what mixing does to a batch."""
