"""Errors that end a command early: bad input, and preemption."""


class UserError(Exception):
    """Bad input. The message says in one line what is wrong, why, and what was expected.

    Commands print it and exit with code 2 (`mnv2_jax.cli`).
    """


class Preempted(Exception):
    """The machine is being preempted (SIGTERM). The run is saved, and the same command resumes it.

    Commands print it and exit with code 75 (EX_TEMPFAIL, "try again").
    """


class Diverged(UserError):
    """The training loss is no longer finite.

    Args:
        message: says at which step, and what to do.
        runs: indices of the diverged runs in their group.
    """

    def __init__(self, message: str, runs: tuple[int, ...]):
        super().__init__(message)
        self.runs = runs
