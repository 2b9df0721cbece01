"""The commands of `python -m mnv2_jax`, a module each."""
