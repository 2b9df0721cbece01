"""The networks, as pure flax.linen modules without training or data."""
