"""What is computed: pure flax.linen modules, without training and without data."""
