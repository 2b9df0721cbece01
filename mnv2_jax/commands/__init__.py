"""The commands of `python -m mnv2_jax`, one module each."""
