"""Convert weights from another code base, or back.

--input takes .safetensors or .pth files of torchvision, timm or Hugging Face, .keras, .weights.h5 or .h5 files of
Keras, and TF-slim checkpoints. The network and its width are inferred from the file. --target torchvision or keras
writes a file that their own loaders can read.
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
    """Flags of this command. The string below each field is its help text."""

    input: str
    """Weights file, prefix of a TF-slim checkpoint, network folder, hf://OWNER/NAME or torchvision://FILE."""
    output: Path
    """Folder for the network; with --target, the file to write (.safetensors, .pth; .weights.h5, .h5)."""
    source: Literal["torchvision", "timm", "transformers", "keras", "tf_slim"] | None = None
    """Fail if the file comes from any other source."""
    target: Literal["checkpoint", "torchvision", "keras"] = "checkpoint"
    """Format to write."""
    drop_background: bool = False
    """Drop class 0 (background) of a network with 1001 classes."""
    class_names: Path | None = None
    """Text file with one class name per line; if not given, ImageNet's for 1000 classes."""
    preprocessing: str | None = None
    """Preprocessing of the images; that of the source if not given (torchvision_v2 is recognized by file name)."""
    resolution: int | None = None
    """Side of the images in pixels; if not given, as in the file, else 224."""
    outputs: Literal["softmax", "sigmoid"] | None = None
    """How outputs become probabilities: softmax over the classes, or one sigmoid per class; if not given, as in the
    file, else softmax."""
    overwrite: bool = False
    """Replace --output if it exists."""


def main(options: Options) -> None:
    """Convert the weights."""
    from mnv2_jax.data.preprocessing import PREPROCESSING, describe_preprocessing
    from mnv2_jax.network import is_replaceable, save_network
    from mnv2_jax.tasks.classification import SIGMOIDS
    from mnv2_jax.weights.load import export_weights, load_weights, with_outputs

    output = options.output
    if options.preprocessing is not None and options.preprocessing not in PREPROCESSING:
        raise UserError(f"unknown preprocessing {options.preprocessing!r}; choose from {', '.join(PREPROCESSING)}")
    check_resolution(options.resolution)
    if output.exists() and not options.overwrite:
        raise UserError(f"--output {output} already exists; choose another or use --overwrite to replace it")
    if output.exists() and output.is_dir() != (options.target == "checkpoint"):
        raise UserError(f"--output {output} is a {'folder' if output.is_dir() else 'file'}; choose another")

    if output.is_dir() and not is_replaceable(output):
        raise UserError(f"--output {output} is a folder that contains more than a network; choose another")

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
            # The suffix selects the format, so the temporary name keeps it.
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
    print(f"{name}, width {model.width_multiplier:g}, {counted(model.num_classes, 'class')}, from {network.source}")
    print(f"preprocessing {describe_preprocessing(network.preprocessing, network.resolution)}")
    sigmoids = [SIGMOIDS] if network.task.outputs == "sigmoid" else []  # type: ignore[attr-defined]
    for note in (*network.notes, *sigmoids):
        print(note)
    print(output)


def read_class_names(path: Path, classes: int) -> tuple[str, ...]:
    """Read one class name per line, in UTF-8, or UTF-16 with a byte order mark.

    Surrounding whitespace and empty lines at the end are dropped.

    Raises:
        UserError: if the file cannot be read, its number of names is not `classes`, or a name is empty.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise UserError(f"--class-names {path} is not a file; expected a text file with one name per line")
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except OSError as error:
        raise UserError(f"--class-names {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--class-names {path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    # Line ends of Unix, Windows and old Macs; str.splitlines would also split at other characters.
    lines = re.split("\r\n|\r|\n", text.rstrip())
    names = tuple(unicodedata.normalize("NFC", line.strip()) for line in lines)
    if len(names) != classes:
        raise UserError(
            f"--class-names {path} has {counted(len(names), 'line')}, expected one for each of "
            f"{counted(classes, 'class')}"
        )
    if "" in names:
        raise UserError(f"--class-names {path} has no name on line {names.index('') + 1}")
    return names
