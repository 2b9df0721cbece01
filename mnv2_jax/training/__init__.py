"""How parameters change: configuration, optimizer, the step, how it is compiled, the loop."""
