"""Tasks: targets, loss and metrics."""
