"""`python -m mnv2_jax COMMAND`: train, evaluate and use networks without writing a script."""

import importlib
import sys

from mnv2_jax import cli
from mnv2_jax.errors import UserError

COMMANDS = {
    "train": "train a network on all devices of one or several hosts",
    "evaluate": "evaluate a trained network on a split of a data set, with per-class accuracy",
    "datasets": "list the known data sets and where they are prepared, or prepare one",
    "summary": "list a network's layers, parameters, multiply-adds and memory",
    "convert": "convert weights from another code base, or back",
    "predict": "predict the classes of images",
    "plan": "compile a run for TPUs that you do not have: memory, time, largest batch",
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
        cli.fail(UserError(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}"))
    command = importlib.import_module(f"mnv2_jax.commands.{name}")
    default = getattr(command, "default", None)
    cli.run(command.main, command.Options, command.__doc__ or "", arguments, f"python -m mnv2_jax {name}", default)


if __name__ == "__main__":
    cli.use_huge_pages()
    main()
