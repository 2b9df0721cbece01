"""Published weights by reference: downloaded once, then found in the cache that other packages share.

`hf://OWNER/NAME` is a repository of the Hugging Face hub, `torchvision://NAME` a file that torchvision publishes. Both
are kept where their own packages keep them, so that what timm or torchvision has downloaded is not downloaded again.
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
"""What is taken of a repository, beside the files that say how it is used. Nothing else is, and never a pickle."""

TORCHVISION_URL = "https://download.pytorch.org/models"
TORCHVISION_FILES = {
    "MobileNet_V2_Weights.IMAGENET1K_V1": "mobilenet_v2-b0353104.pth",
    "MobileNet_V2_Weights.IMAGENET1K_V2": "mobilenet_v2-7ebf99e0.pth",
    "MobileNet_V2_Weights.DEFAULT": "mobilenet_v2-7ebf99e0.pth",
}
"""torchvision's names for its MobileNetV2 weights (torchvision/models/mobilenetv2.py). Behind the dash stand the first
digits of the file's SHA-256."""

MOST_BYTES = 256 << 20
"""Several times what the largest MobileNet takes; a larger file is refused."""
TIMEOUT = 10.0
"""Seconds to wait for a server's answer."""
ELSEWHERE = "name a local file, or run this once where the network is open"


def is_reference(text: str) -> bool:
    """Whether a text names published weights, `SCHEME://...`, rather than a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def fetch(reference: str) -> Path:
    """Find the weights that a reference names, and download them if they are not in the cache.

    A branch is looked up each time; without a network, what the cache has of it is taken.

    Args:
        reference: `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` (a branch, a tag or a commit; needs the extra "hub");
            `torchvision://NAME`, of a file or a member of torchvision's `MobileNet_V2_Weights`.

    Returns:
        The folder of a repository's snapshot, with `config.json`, `model.safetensors` and, where it has one,
        `preprocessor_config.json`; or torchvision's file.

    Raises:
        UserError: for an unknown reference, no access, no network, and a file that is damaged, missing or too large.
    """
    scheme, _, name = reference.partition("://")
    if not is_reference(reference) or scheme.lower() not in SCHEMES:
        raise UserError(
            f"{reference} names no weights known here; known are hf://OWNER/NAME, hf://OWNER/NAME@REVISION, "
            "torchvision://NAME, and paths of local files"
        )
    return SCHEMES[scheme.lower()](name)


# --- The Hugging Face hub ----------------------------------------------------------------------------------


def _fetch_repository(name: str) -> Path:
    """The folder of a repository's snapshot in the hub's cache."""
    reference = f"hf://{name}"
    # The hub's own rules for names; a revision is a path in its cache.
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?", name, re.ASCII)
    if found is None or ".." in name or "--" in found.group(1):
        raise UserError(f"{reference} is no repository; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    repository, revision = found.group(1), found.group(2) or "main"
    with _quiet():
        hub = _import_hub(reference)
        try:
            cached = _cached_snapshot(hub, repository, revision)
        except hub.errors.HFValidationError as error:
            raise UserError(f"{reference} is no repository ({_reason(error)})") from error
        if cached is not None and cached.name == revision:  # a commit never changes
            return cached
        try:
            return _download_snapshot(hub, reference, repository, revision)
        except UserError:
            raise
        except Exception as error:  # of three HTTP libraries, by the hub's version
            if cached is not None and not _is_final(hub, error):
                return cached
            raise UserError(f"{reference}: {_explain(hub, repository, revision, error)}") from error


def _import_hub(reference: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f"{reference} is on the Hugging Face hub, which huggingface_hub reads: pip install 'mnv2-jax[hub]'"
        ) from None
    return huggingface_hub


def _cached_snapshot(hub: ModuleType, repository: str, revision: str) -> Path | None:
    """The snapshot that the cache has of a revision, if it is whole."""
    paths = [hub.try_to_load_from_cache(repository, name, revision=revision) for name in (CONFIG, WEIGHTS)]
    return Path(paths[-1]).parent if all(isinstance(path, str) for path in paths) else None


def _download_snapshot(hub: ModuleType, reference: str, repository: str, revision: str) -> Path:
    """Complete the snapshot of a revision as it is now.

    Raises:
        UserError: if the weights are too large.
        Exception: whatever the hub raises.
    """
    # `hf_hub_download` tries for minutes to reach a server; this asks once.
    url = hub.hf_hub_url(repository, WEIGHTS, revision=revision)
    size = hub.get_hf_file_metadata(url, timeout=TIMEOUT).size
    if size is not None and size > MOST_BYTES:
        raise UserError(f"{reference} holds {size / 2**20:.0f} MiB of weights; no network here takes a quarter of that")
    # Asked for by its name, so that the cache remembers which commit the name stands for.
    snapshot = Path(hub.hf_hub_download(repository, WEIGHTS, revision=revision)).parent
    hub.hf_hub_download(repository, CONFIG, revision=snapshot.name)
    # The cache remembers a file that is not there, too.
    if hub.try_to_load_from_cache(repository, PREPROCESSOR, revision=snapshot.name) is None:
        try:
            hub.hf_hub_download(repository, PREPROCESSOR, revision=snapshot.name)
        except hub.errors.LocalEntryNotFoundError:  # the network has gone, which says nothing of the file
            raise
        except hub.errors.EntryNotFoundError:
            pass
    return snapshot


def _is_final(hub: ModuleType, error: Exception) -> bool:
    """Whether an error stands even if the cache has the revision: it is gone, or the cache itself fails."""
    if isinstance(error, hub.errors.LocalEntryNotFoundError):  # the network fails; a kind of EntryNotFoundError
        return False
    return isinstance(error, (hub.errors.RevisionNotFoundError, hub.errors.EntryNotFoundError)) or _is_local(error)


def _is_local(error: Exception) -> bool:
    """Whether an error is the operating system's about a file."""
    return isinstance(error, OSError) and isinstance(error.errno, int) and not isinstance(error, ConnectionError)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _explain(hub: ModuleType, repository: str, revision: str, error: Exception) -> str:
    """What went wrong and what to do, in one line."""
    errors, endpoint, cache = hub.errors, hub.constants.ENDPOINT, hub.constants.HF_HUB_CACHE
    page = f"{endpoint}/{repository}"
    chain = list(_causes(error))
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in chain):
        return f"it is not in {cache}, and HF_HUB_OFFLINE forbids to download it; unset that, or {ELSEWHERE}"
    status = next(filter(None, map(_status, chain)), None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access on {page}; ask there, then log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or it is private: log in with `hf auth login` or HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {revision!r}; its branches, tags and commits are on {page}/commits"
    if isinstance(error, errors.EntryNotFoundError) and _status(error) is not None:
        return f"{page} has no {WEIGHTS} beside a {CONFIG}; other formats are not taken from the hub: download the folder, and name that"
    if status in (401, 403):
        return f"{endpoint} refuses access ({status}); log in with `hf auth login`, or set a valid HF_TOKEN"
    if status is not None:
        return f"it is not in {cache}, and {endpoint} answers {status}; try again later, or name a local file"
    if isinstance(error, OSError) and _is_local(error):
        where = error.filename or cache
        return f"{where} cannot be read or written ({error.strerror}); HF_HOME names another folder"
    return f"it is not in {cache}, and cannot be downloaded from {endpoint} ({_reason(chain[-1])}); {ELSEWHERE}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, which is the last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    """An error in a few words."""
    inner = getattr(error, "reason", None)  # urllib wraps what happened
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:200]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, messages and progress bars of the hub: what matters in them is said in one line."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        with contextlib.suppress(ImportError):
            from huggingface_hub import utils
            from huggingface_hub.utils import logging as messages  # sets the level of its messages when it is imported

            if not utils.are_progress_bars_disabled():
                utils.disable_progress_bars()
                stack.callback(utils.enable_progress_bars)
            stack.callback(messages.set_verbosity, messages.get_verbosity())
            messages.set_verbosity(logging.CRITICAL)
        yield


# --- torchvision's files -----------------------------------------------------------------------------------


def _fetch_torchvision(name: str) -> Path:
    """A file in torch hub's cache, whole."""
    file_name = TORCHVISION_FILES.get(name, name)
    if file_name not in TORCHVISION_FILES.values():
        known = ", ".join(sorted({*TORCHVISION_FILES, *TORCHVISION_FILES.values()}))
        raise UserError(f"torchvision://{name} is not among its MobileNets; known are {known}")
    path = _torch_checkpoints() / file_name
    expected = path.stem.rpartition("-")[2]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(f"{TORCHVISION_URL}/{file_name}", path, expected)
        elif not (digest := _sha256(path)).startswith(expected):
            raise UserError(
                f"{path} is damaged: its SHA-256 begins with {digest[: len(expected)]}, not {expected}; delete it, "
                "and it is downloaded again"
            )
    except OSError as error:
        where = error.filename or path
        raise UserError(
            f"{where} cannot be read or written ({error.strerror or error}); TORCH_HOME names another folder"
        ) from error
    return path


def _torch_checkpoints() -> Path:
    """Where torch.hub keeps its files."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))).expanduser() / "hub" / "checkpoints"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path, expected: str) -> None:
    """Download a file beside its place, and rename it once its digest is right.

    Args:
        url, path: from where and to where.
        expected: first digits of its SHA-256.

    Raises:
        UserError: for no network, and a file that is not there, cut short, damaged or too large.
        OSError: if it cannot be written.
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
                f"{url} came damaged: its SHA-256 begins with {digest.hexdigest()[: len(expected)]}, not {expected}; "
                "try again"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(url: str, path: Path) -> Iterator[bytes]:
    """The content at an address, block by block.

    Raises:
        UserError: for whatever goes wrong with the network or its answer.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0)
            received = 0
            while block := response.read(1 << 20):
                received += len(block)
                if max(size, received) > MOST_BYTES:
                    raise UserError(f"{url} is larger than {MOST_BYTES >> 20} MiB, and no network here takes as much")
                yield block
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(f"{url} cannot be downloaded: the server answers {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(
            f"{path.name} is not in {path.parent}, and {url} cannot be reached ({_reason(error)}); {ELSEWHERE}"
        ) from error
    if received < size:
        raise UserError(f"{url} was cut short, after {received} of {size} bytes; try again")


SCHEMES: dict[str, Callable[[str], Path]] = {"hf": _fetch_repository, "torchvision": _fetch_torchvision}
