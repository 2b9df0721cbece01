"""Training: configuration, optimizer, the step and its compilation, the loop."""
