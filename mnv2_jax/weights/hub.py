"""Download published weights by reference, and cache them.

`hf://OWNER/NAME` is a repository on the Hugging Face hub, `torchvision://NAME` a file published by torchvision. Both
are cached where their own packages cache them, so what timm or torchvision has downloaded is not downloaded again.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from mnv2_jax.errors import UserError
from mnv2_jax.weights.configs import CONFIG, PREPROCESSOR

WEIGHTS = "model.safetensors"
"""The only file downloaded from a hub repository besides its configuration files; pickles never are."""

TORCHVISION_URL = "https://download.pytorch.org/models"
TORCHVISION_FILES = {
    "MobileNet_V2_Weights.IMAGENET1K_V1": "mobilenet_v2-b0353104.pth",
    "MobileNet_V2_Weights.IMAGENET1K_V2": "mobilenet_v2-7ebf99e0.pth",
    "MobileNet_V2_Weights.DEFAULT": "mobilenet_v2-7ebf99e0.pth",
}
"""Files of torchvision's MobileNetV2 weights by its names for them (torchvision/models/mobilenetv2.py). The digits
after the dash are the first of the file's SHA-256."""

MOST_BYTES = 256 << 20
"""Several times the size of the largest MobileNet; larger files are rejected."""
TIMEOUT = 10.0
"""Seconds to wait for an answer from a server."""
ELSEWHERE = "use a local file, or run this once with internet access"


def is_reference(text: str) -> bool:
    """Return whether a text is a reference to published weights, `SCHEME://...`, rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def fetch(reference: str) -> Path:
    """Return the path of the weights that a reference names, and download them if they are not in the cache.

    A branch or tag is looked up each time. Without a network, its cached version is used.

    Args:
        reference: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` (a branch, a tag or a commit; needs the extra "hub");
            or `torchvision://NAME`, where NAME is a file or a member of torchvision's `MobileNet_V2_Weights`.

    Returns:
        For a repository, the folder of its snapshot, with `config.json`, `model.safetensors` and, if the repository has
        it, `preprocessor_config.json`. For torchvision, the file.

    Raises:
        UserError: for an unknown reference, denied access, no network, and a damaged, missing or too large file.
    """
    scheme, _, name = reference.partition("://")
    if not is_reference(reference) or scheme.lower() not in SCHEMES:
        raise UserError(
            f"{reference} is not a supported reference to weights; expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION, "
            "torchvision://NAME, or the path of a local file"
        )
    return SCHEMES[scheme.lower()](name)


# --- The Hugging Face hub ----------------------------------------------------------------------------------


def _fetch_repository(name: str) -> Path:
    """Return the folder of a repository's snapshot in the hub's cache; download it if needed."""
    reference = f"hf://{name}"
    # The hub's own rules for names. The revision is checked too, since it becomes a path in the cache.
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?", name, re.ASCII)
    if found is None or ".." in name or "--" in found.group(1):
        raise UserError(f"{reference} is not a repository; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    repository, revision = found.group(1), found.group(2) or "main"
    with _quiet():
        hub = _import_hub(reference)
        try:
            cached = _cached_snapshot(hub, repository, revision)
        except hub.errors.HFValidationError as error:
            raise UserError(f"{reference} is not a repository ({_reason(error)})") from error
        if cached is not None and cached.name == revision:  # a commit never changes
            return cached
        try:
            return _download_snapshot(hub, reference, repository, revision)
        except UserError:
            raise
        except Exception as error:  # which HTTP library raises depends on the hub's version
            if cached is not None and not _is_final(hub, error):
                return cached
            raise UserError(f"{reference}: {_explain(hub, repository, revision, error)}") from error


def _import_hub(reference: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f"{reference} is on the Hugging Face hub; reading it requires huggingface_hub: pip install 'mnv2-jax[hub]'"
        ) from None
    return huggingface_hub


def _cached_snapshot(hub: ModuleType, repository: str, revision: str) -> Path | None:
    """Return the cached snapshot of a revision, or None if it is not complete."""
    paths = [hub.try_to_load_from_cache(repository, name, revision=revision) for name in (CONFIG, WEIGHTS)]
    return Path(paths[-1]).parent if all(isinstance(path, str) for path in paths) else None


def _download_snapshot(hub: ModuleType, reference: str, repository: str, revision: str) -> Path:
    """Download the current snapshot of a revision; files already in the cache are kept.

    Raises:
        UserError: if the weights are too large.
        Exception: any error that the hub raises.
    """
    # `hf_hub_download` retries for minutes to reach a server; this asks once.
    url = hub.hf_hub_url(repository, WEIGHTS, revision=revision)
    size = hub.get_hf_file_metadata(url, timeout=TIMEOUT).size
    if size is not None and size > MOST_BYTES:
        raise UserError(
            f"{reference} contains {size / 2**20:.0f} MiB of weights, more than four times as much as any "
            "supported network"
        )
    # Requested by the name of the revision, so that the cache records which commit it refers to.
    snapshot = Path(hub.hf_hub_download(repository, WEIGHTS, revision=revision)).parent
    hub.hf_hub_download(repository, CONFIG, revision=snapshot.name)
    # None means unknown: the cache also records files that the repository does not have.
    if hub.try_to_load_from_cache(repository, PREPROCESSOR, revision=snapshot.name) is None:
        try:
            hub.hf_hub_download(repository, PREPROCESSOR, revision=snapshot.name)
        except hub.errors.LocalEntryNotFoundError:  # the network failed, so the file may exist
            raise
        except hub.errors.EntryNotFoundError:
            pass
    return snapshot


def _is_final(hub: ModuleType, error: Exception) -> bool:
    """Return whether an error forbids using the cached revision: it no longer exists, or the cache itself fails."""
    if isinstance(error, hub.errors.LocalEntryNotFoundError):  # the network failed; a subclass of EntryNotFoundError
        return False
    return isinstance(error, (hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError)) or _is_local(error)


def _is_local(error: Exception) -> bool:
    """Return whether an error is the operating system's about a file."""
    return isinstance(error, OSError) and isinstance(error.errno, int) and not isinstance(error, ConnectionError)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(hub: ModuleType, repository: str, revision: str, error: Exception) -> str:
    """Return one line that says what went wrong and what to do."""
    errors, endpoint, cache = hub.errors, hub.constants.ENDPOINT, hub.constants.HF_HUB_CACHE
    page = f"{endpoint}/{repository}"
    chain = list(_causes(error))
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        return f"it is not in {cache}, and HF_HUB_OFFLINE forbids downloading it; unset that, {ELSEWHERE}"
    status = next(filter(None, map(_status, chain)), None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner has to grant access; request it on {page}, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or it is private: log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {revision!r}; its branches, tags and commits are on {page}/commits"
    if isinstance(error, errors.EntryNotFoundError) and _status(error) is not None:
        return (
            f"{page} has no {WEIGHTS} next to a {CONFIG}; other formats are not read from the hub: download the folder "
            "and use its path"
        )
    if status in (401, 403):
        return f"{endpoint} denies access ({status}); log in with `hf auth login` or set a valid HF_TOKEN"
    if status is not None:
        return f"it is not in {cache}, and {endpoint} responded with {status}; try again later, or use a local file"
    if isinstance(error, OSError) and _is_local(error):
        where = error.filename or cache
        return f"{where} cannot be read or written ({error.strerror}); set HF_HOME to another folder"
    return f"it is not in {cache} and cannot be downloaded from {endpoint} ({_reason(chain[-1])}); {ELSEWHERE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; the root cause is last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    """Return the reason of an error in a few words."""
    inner = getattr(error, "reason", None)  # urllib wraps the actual error
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings, messages and progress bars of the hub; errors are reported in one line instead."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImportError):
            from huggingface_hub import utils
            from huggingface_hub.utils import logging as messages  # sets its log level when imported

            if not utils.are_progress_bars_disabled():
                utils.disable_progress_bars()
                stack.callback(utils.enable_progress_bars)
            stack.callback(messages.set_verbosity, messages.get_verbosity())
            messages.set_verbosity(logging.CRITICAL)
        yield


# --- torchvision's files -----------------------------------------------------------------------------------


def _fetch_torchvision(name: str) -> Path:
    """Return the path of a file in torch hub's cache, downloaded if needed and with a checked digest."""
    file_name = TORCHVISION_FILES.get(name, name)
    if file_name not in TORCHVISION_FILES.values():
        known = ", ".join(sorted({*TORCHVISION_FILES, *TORCHVISION_FILES.values()}))
        raise UserError(f"torchvision://{name} is not one of torchvision's MobileNets; choose from {known}")
    path = _torch_checkpoints() / file_name
    expected = path.stem.rpartition("-")[2]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(f"{TORCHVISION_URL}/{file_name}", path, expected)
        elif not (digest := _sha256(path)).startswith(expected):
            raise UserError(
                f"{path} is damaged: its SHA-256 begins with {digest[: len(expected)]}, not {expected}; delete it "
                "to download it again"
            )
    except OSError as error:
        where = error.filename or path
        raise UserError(
            f"{where} cannot be read or written ({error.strerror or error}); set TORCH_HOME to another folder"
        ) from error
    return path


def _torch_checkpoints() -> Path:
    """Return the folder in which torch.hub keeps its files."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "hub" / "checkpoints"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path, expected: str) -> None:
    """Download to a temporary file in the folder of `path`, and rename it once its digest is verified.

    Args:
        url: source.
        path: destination.
        expected: first digits of the SHA-256.

    Raises:
        UserError: for no network, and a file that is missing, truncated, damaged or too large.
        OSError: if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    digest = hashlib.sha256()
    try:
        with temporary.open("xb") as file:
            for block in _read(url, path):
                digest.update(block)
                file.write(block)
        if not digest.hexdigest().startswith(expected):
            raise UserError(
                f"{url} arrived damaged: its SHA-256 begins with {digest.hexdigest()[: len(expected)]}, not "
                f"{expected}; try again"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(url: str, path: Path) -> Iterator[bytes]:
    """Yield the content at a URL block by block.

    Raises:
        UserError: for any error of the network or the server, and a file that is too large.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0)
            received = 0
            while block := response.read(1 << 20):
                received += len(block)
                if max(size, received) > MOST_BYTES:
                    raise UserError(f"{url} is larger than {MOST_BYTES >> 20} MiB, more than any supported network")
                yield block
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(
            f"{url} cannot be downloaded: the server responded with {error.code} ({error.reason})"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{path.name} is not in {path.parent}, and {url} cannot be reached ({_reason(error)}); {ELSEWHERE}"
        ) from error
    if received < size:
        raise UserError(f"{url} was cut short after {received} of {size} bytes; try again")


SCHEMES: dict[str, Callable[[str], Path]] = {"hf": _fetch_repository, "torchvision": _fetch_torchvision}
