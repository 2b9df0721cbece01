"""Errors that end a command early: bad input, and a machine that is taken away."""


class UserError(Exception):
    """Bad input: the message says in one line what is wrong, why, and what would be right.

    Commands print it and exit with code 2 (`mnv2_jax.cli`).
    """


class Preempted(Exception):
    """The machine is being taken away (SIGTERM): the run is saved, and the same command resumes it.

    Commands print it and exit with code 75, the system's word for "try again" (EX_TEMPFAIL).
    """


class Diverged(UserError):
    """Training whose loss is no longer a finite number.

    Args:
        message: says at which step, and what to do.
        runs: indices of those runs in their group.
    """

    def __init__(self, message: str, runs: tuple[int, ...]):
        super().__init__(message)
        self.runs = runs
