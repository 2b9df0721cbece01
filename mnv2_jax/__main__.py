"""`python -m mnv2_jax COMMAND`: train, evaluate and use networks without writing a script."""

import importlib
import sys

from mnv2_jax import cli
from mnv2_jax.errors import UserError

COMMANDS = {
    "train": "train a network, on all devices of this host or of several",
    "evaluate": "score a trained network on a split of a data set, class by class",
    "datasets": "list the data sets that are known and prepared; prepare one",
    "summary": "list a network's layers, parameters, multiply-adds and memory",
    "convert": "convert weights of another code base into a network, or back",
    "predict": "predict the classes of images",
    "plan": "compile a run for TPUs that are not here: memory, time, the largest batch",
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
