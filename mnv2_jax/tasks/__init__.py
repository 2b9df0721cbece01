"""What is learnt: the targets, the loss and the metrics of each task."""
