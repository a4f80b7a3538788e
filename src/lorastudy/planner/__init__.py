"""What to run together, and in which order."""
