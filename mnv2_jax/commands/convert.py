"""Convert weights of another code base into a network of this one, or back.

Into a network: --input takes torchvision's, timm's or Hugging Face's .safetensors or .pth, Keras's .keras,
.weights.h5 or .h5, or a TF-slim checkpoint; which network it is, and its width, are read off the file.
Back: --target torchvision or keras writes a file that their own loader takes.
"""

import codecs
import dataclasses
import os
import re
import unicodedata
from pathlib import Path
from typing import Literal

from mnv2_jax.errors import UserError
from mnv2_jax.settings import check_resolution
from mnv2_jax.wording import counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags of this command. What follows a field is its help."""

    input: str
    """File of weights, prefix of a TF-slim checkpoint, network's folder, hf://OWNER/NAME or torchvision://FILE."""
    output: Path
    """Folder of the network to write; with --target, the file (.safetensors, .pth; .weights.h5, .h5)."""
    source: Literal["torchvision", "timm", "transformers", "keras", "tf_slim"] | None = None
    """Refuse a file of any other source than this."""
    target: Literal["checkpoint", "torchvision", "keras"] = "checkpoint"
    """What to write."""
    drop_background: bool = False
    """Leave out class 0 of a network with 1001 classes, which is the background."""
    class_names: Path | None = None
    """Text file with the name of each class, one a line; ImageNet's for 1000 classes if not given."""
    preprocessing: str | None = None
    """What the images need; that of the source if not given (torchvision_v2 is known by its file's name)."""
    resolution: int | None = None
    """Side of the images in pixels; as in the file if not given, else 224."""
    outputs: Literal["softmax", "sigmoid"] | None = None
    """What makes probabilities of the outputs: softmax over the classes, or a sigmoid each; as in the file if not
    given, else softmax."""
    overwrite: bool = False
    """Replace what is at --output."""


def main(options: Options) -> None:
    """Convert what the flags name."""
    from mnv2_jax.data.preprocessing import PREPROCESSING, describe_preprocessing
    from mnv2_jax.network import is_replaceable, save_network
    from mnv2_jax.tasks.classification import SIGMOIDS
    from mnv2_jax.weights.load import export_weights, load_weights, with_outputs

    output = options.output
    if options.preprocessing is not None and options.preprocessing not in PREPROCESSING:
        raise UserError(f"there is no preprocessing {options.preprocessing!r}; known are {', '.join(PREPROCESSING)}")
    check_resolution(options.resolution)
    if output.exists() and not options.overwrite:
        raise UserError(f"--output {output} exists; name another, or --overwrite it")
    if output.exists() and output.is_dir() != (options.target == "checkpoint"):
        raise UserError(f"--output {output} is a {'folder' if output.is_dir() else 'file'}; name another")

    if output.is_dir() and not is_replaceable(output):
        raise UserError(f"--output {output} is a folder that holds more than a network; name another")

    network = load_weights(options.input, options.source, options.drop_background)
    if options.preprocessing:
        network = network.replace(preprocessing=options.preprocessing)
    if options.resolution:
        network = network.replace(resolution=options.resolution)
    if options.outputs:
        network = with_outputs(network, options.outputs)
    if options.class_names is not None:
        network = network.replace(class_names=read_class_names(options.class_names, network.model.num_classes))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if options.target == "checkpoint":
            save_network(output, network)
        else:
            # The suffix says the form, so it stays at the end.
            beside = output.with_name(f".{os.getpid()}{''.join(output.suffixes)}")
            try:
                export_weights(beside, network, options.target)
                os.replace(beside, output)
            finally:
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written ({error.strerror})") from error

    model = network.model
    name = type(model).__name__
    print(f"{name}, width {model.width_multiplier:g}, {counted(model.num_classes, 'class')}, of {network.source}")
    print(f"preprocessing {describe_preprocessing(network.preprocessing, network.resolution)}")
    sigmoids = [SIGMOIDS] if network.task.outputs == "sigmoid" else []  # type: ignore[attr-defined]
    for note in (*network.notes, *sigmoids):
        print(note)
    print(output)


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """One name a line, in UTF-8, or in UTF-16 with its mark at the start; spaces around it and empty last lines are left out.

    Raises:
        UserError: if there are not as many as classes, or one is empty.
    """
    if path.exists() and not path.is_file():  # to open a pipe is to wait for it
        raise UserError(f"--class-names {path} is no file; expected a text file with a name a line")
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"--class-names {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--class-names {path} is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
    # Lines of Unix, Windows and old Macs; str.splitlines would take more characters for ends of lines.
    lines = re.split("\r\n|\r|\n", text.rstrip())
    names = tuple(unicodedata.normalize("NFC", line.strip()) for line in lines)
    if len(names) != classes:
        raise UserError(
            f"--class-names {path} has {counted(len(names), 'line')}, expected one for each of "
            f"{counted(classes, 'class')}"
        )
    if "" in names:
        raise UserError(f"--class-names {path} has no name in line {names.index('') + 1}")
    return names
