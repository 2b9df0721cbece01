"""Read tensors from files and write them. Files are not trusted: declared sizes are checked before tensors are read.

No code in a file is run. PyTorch's format is a pickle. It is read with `weights_only`, which rejects everything but
tensors and plain containers. Other objects that training scripts often save are replaced by stand-ins that do nothing.
"""

import contextlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mnv2_jax.errors import UserError

MOST_BYTES = 1 << 30
"""Many times the size of any network here; files that declare more are rejected unread."""

KNOWN = (
    "supported are safetensors files, PyTorch files (.pth, .bin), Keras files (.keras, .h5) and TensorFlow checkpoints"
)

STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts save a network's tensors in a larger checkpoint; averaged weights first."""


class StandIn:
    """Replacement for objects saved beside the tensors: accepts any arguments and state, and keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":  # noqa: D102
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


STOOD_IN_FOR = (
    "argparse.Namespace",
    *(
        f"pathlib.{local}{kind}Path"
        for local in ("", "_local.")
        for kind in ("Posix", "Windows", "PurePosix", "PureWindows")
    ),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    "numpy.dtype",
)
"""Classes read as `StandIn`: command-line arguments, paths and NumPy numbers, which training scripts often save."""


def check_size(path: Path, size: int) -> None:
    """Check the number of bytes that a file declares.

    Raises:
        UserError: if it is over `MOST_BYTES`.
    """
    if size > MOST_BYTES:
        raise UserError(
            f"{path} declares {size / 2**30:.1f} GiB of tensors, more than ten times as much as any supported network"
        )


@contextlib.contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Turn any error that a library raises for a damaged file into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library has its own errors, and they change
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as {what}; it may be truncated ({reason[:200]})") from error


def kind_of(path: Path) -> str:
    """Return the format of a path, from its content: "safetensors", "torch", "keras", "hdf5", "tf" or "checkpoint".

    Raises:
        UserError: if the path cannot be read or its format is unknown.
    """
    if path.is_dir():
        if (path / "description").is_dir():
            return "checkpoint"
        if (path / "checkpoint").is_file():
            return "tf"
        raise UserError(
            f"{path} is a folder without weights: neither a network nor a finished run of this package, nor a "
            "TensorFlow checkpoint, nor a Hugging Face folder with model.safetensors or pytorch_model.bin; choose a "
            "weights file or the folder of a checkpoint"
        )
    if Path(f"{path}.index").is_file() or path.suffix == ".index":
        return "tf"
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise UserError(f"{path} is not a file; expected a weights file or a network's folder")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if head.startswith(b"PK"):
        with readable(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "config.json" in names and "model.weights.h5" in names:
            return "keras"
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(
                f"{path} is a TorchScript archive, which contains code; save only the network's state_dict()"
            )
        if any(name.endswith("/data.pkl") for name in names):
            return "torch"
        kind = "NumPy" if names and all(name.endswith(".npy") for name in names) else "zip"
        some = ", ".join(names[:3]) or "nothing"
        raise UserError(f"{path} is a {kind} archive (containing {some}), not a supported weights file; {KNOWN}")
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"\x80"):
        return "torch"
    raise UserError(f"{path} is not a supported weights file; {KNOWN}")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return all tensors by name. The library checks the header against the size of the file."""
    with readable(path, "a safetensors file"), safetensors.safe_open(path, framework="numpy") as file:
        check_size(path, path.stat().st_size)
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_torch(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Return all tensors of a state dict by name, and its key in the larger checkpoint, or "" if there is none.

    Raises:
        UserError: for a damaged file, a pickle with objects that are not allowed, a file without a state dict, and if
            PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} is a PyTorch file; reading it requires PyTorch: pip install torch, or save it as .safetensors"
        ) from None
    if zipfile.is_zipfile(path):
        with readable(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            check_size(path, sum(member.file_size for member in archive.infolist()))
    with readable(path, "a PyTorch file"):
        try:
            with torch.serialization.safe_globals([(StandIn, name) for name in STOOD_IN_FOR]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "weights_only" not in str(error).lower():
                raise
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UserError(
                f"{path} contains more than tensors{f', such as {found.group(1)}' if found else ''}, and reading it "
                "could run code, so it is refused; save only the network's state_dict()"
            ) from error
    key = ""
    if isinstance(content, Mapping):
        for key in STATE_DICT_KEYS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        else:
            key = ""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, expected a state dict")
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    # With strides of 0, a small file can declare a tensor of any size.
    check_size(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
    with readable(path, "a PyTorch file"):
        return {str(name): _from_torch(tensor) for name, tensor in tensors.items()}, key


def _from_torch(tensor: Any) -> np.ndarray:
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous().numpy()


def read_tensorflow(path: Path) -> dict[str, np.ndarray]:
    """Return the floating-point tensors of a TensorFlow checkpoint by name.

    `path` is the prefix of the checkpoint, its .index file or its folder.
    """
    try:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf
    except ImportError:
        raise UserError(
            f"{path} is a TensorFlow checkpoint; reading it requires TensorFlow: pip install 'mnv2-jax[tensorflow]'"
        ) from None
    with readable(path, "a TensorFlow checkpoint"):
        prefix: str | None = str(path).removesuffix(".index")
        if path.is_dir():
            prefix = tf.train.latest_checkpoint(str(path))
        reader = tf.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        numbers = {name: shape for name, shape in reader.get_variable_to_shape_map().items() if types[name].is_floating}
        check_size(path, sum(types[name].size * int(np.prod(shape)) for name, shape in numbers.items()))
        return {name: reader.get_tensor(name) for name in numbers}


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a safetensors file with these tensors."""
    return safetensors.numpy.save(dict(tensors))


def torch_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a PyTorch file with these tensors as a state dict.

    Raises:
        UserError: if PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing a PyTorch file requires PyTorch: pip install torch, or write a .safetensors file"
        ) from None
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}, content)
    return content.getvalue()
