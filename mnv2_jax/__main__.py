"""`python -m mnv2_jax COMMAND`: what one does with a network that needs no script of its own."""

import importlib
import sys

from mnv2_jax import cli
from mnv2_jax.errors import UserError

COMMANDS = {
    "train": "one run, on all devices of this host or of several",
    "evaluate": "loss and accuracy of a trained network on a split of a data set",
    "datasets": "what data sets are known, and which are prepared; prepare one",
    "summary": "a network's layers, parameters, multiply-adds and memory",
    "convert": "weights of another code base into a checkpoint, and back",
    "predict": "the classes of images",
    "plan": "what a run needs of TPUs that are not here: memory, time, the largest batch",
}


def main() -> None:
    """Run the command that the first argument names; each is a module of `mnv2_jax.commands`."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        with cli.exit_codes():
            print("usage: python -m mnv2_jax COMMAND [--help]\n")
            for known, purpose in COMMANDS.items():
                print(f"  {known:10}{purpose}")
        return
    if name not in COMMANDS:
        cli.fail(UserError(f"there is no command {name!r}; known are {', '.join(COMMANDS)}"))
    command = importlib.import_module(f"mnv2_jax.commands.{name}")
    default = getattr(command, "default", None)
    cli.run(command.main, command.Options, command.__doc__ or "", arguments, f"python -m mnv2_jax {name}", default)


if __name__ == "__main__":
    cli.use_huge_pages()
    main()
