"""What is learnt: the target, the loss and the metrics of each task."""
