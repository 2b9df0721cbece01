"""The one error that is the user's to mend."""


class UserError(Exception):
    """Bad input: the message says in one line what is wrong, why, and what would be right.

    Commands print it and exit with code 2 (`mnv2_jax.cli`).
    """
