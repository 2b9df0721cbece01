"""Published weights by reference, from local test servers."""

import hashlib
import http.server
import logging
import os
import socket
import sys
import threading
import time

import pytest

from mnv2_jax.errors import UserError
from mnv2_jax.weights import hub
from mnv2_jax.weights.hub import fetch, is_reference

COMMIT, NEWER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
REPOSITORY = "timm/mobilenetv2_100.ra_in1k"
REFERENCE = f"hf://{REPOSITORY}"
FILES = {"config.json": b'{"architecture": "mobilenetv2_100"}', "model.safetensors": b"tensors"}


def refusal(reference):
    """Return the one-line error of fetching a reference."""
    with pytest.raises(UserError) as caught:
        fetch(reference)
    message = str(caught.value)
    assert message == " ".join(message.split())
    return message


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server(http.server.ThreadingHTTPServer):
    """Answers requests with `answer(method, path) -> (status, headers, body)` and records them in `asked`."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = answer, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        status, headers, body = self.server.answer(self.command, self.path)
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Return a function that starts servers, which stop with the test."""
    servers = []
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def start(answer):
        server = Server(answer)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# --- References ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [REFERENCE, f"{REFERENCE}@main", "torchvision://mobilenet_v2-b0353104.pth", "gs://bucket/x", "HTTP://x/y"]
)
def test_what_begins_with_a_scheme_is_a_reference(text):
    assert is_reference(text)


@pytest.mark.parametrize("text", ["weights.safetensors", "/tmp/x", "runs/a:b//c", "C:\\x", "hf:timm", "://x", ""])
def test_a_path_is_none(text):
    assert not is_reference(text)


@pytest.mark.parametrize("reference", ["gs://bucket/x", "http://example.org/x.pth", "weights.pth", "hub://a/b"])
def test_another_scheme_is_refused_with_what_is_known(reference):
    message = refusal(reference)
    assert message.startswith(f"{reference} ")
    assert "hf://OWNER/NAME" in message
    assert "torchvision://NAME" in message


# --- The Hugging Face hub --------------------------------------------------------------------------------


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Provide an empty cache and no network; unload huggingface_hub, since it reads its environment on import."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    before = forget_hub()
    yield tmp_path / "hf"
    if "huggingface_hub" in sys.modules and hasattr(sys.modules["huggingface_hub"], "close_session"):
        sys.modules["huggingface_hub"].close_session()
    forget_hub()
    sys.modules.update(before)


def forget_hub():
    names = [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]
    return {name: sys.modules.pop(name) for name in names}


def keep(home, files=FILES, commit=COMMIT, revision="main"):
    """Put a snapshot into the cache as huggingface_hub does, and return its folder."""
    folder = home / "hub" / "models--timm--mobilenetv2_100.ra_in1k"
    snapshot = folder / "snapshots" / commit
    for place in (folder / "blobs", folder / "refs", snapshot):
        place.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    for name, content in files.items():
        blob = hashlib.sha256(content).hexdigest()
        (folder / "blobs" / blob).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


class Hub:
    """The hub's server with one repository; `error` replaces its answers."""

    def __init__(self, files=FILES, commit=COMMIT, error=None):
        self.files, self.commit, self.error = files, commit, error

    def __call__(self, method, path):
        if self.error is not None:
            return self.error
        start, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if start != f"/{REPOSITORY}":
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in ("main", self.commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b""
        body = self.files[name]
        return 200, {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body


@pytest.fixture
def online(home, serve, monkeypatch):
    """Return a function that starts a hub and makes it the endpoint."""

    def start(*arguments, **options):
        server = serve(Hub(*arguments, **options))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        return server

    return start


@pytest.mark.parametrize("suffix", ["", "@main", f"@{COMMIT}"])
def test_a_cached_repository_needs_no_network(home, monkeypatch, suffix):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = keep(home)
    assert fetch(REFERENCE + suffix) == snapshot


def test_a_branch_or_tag_is_found_by_its_name(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keep(home)
    newer = keep(home, commit=NEWER, revision="v2")
    assert fetch(f"{REFERENCE}@v2") == newer


def test_a_cached_commit_is_not_asked_for(home, online):
    server = online()
    assert fetch(f"{REFERENCE}@{COMMIT}") == fetch(f"{REFERENCE}@{COMMIT}")
    asked = len(server.asked)
    fetch(f"{REFERENCE}@{COMMIT}")
    assert len(server.asked) == asked


def test_without_a_network_the_cached_branch_is_taken_at_once(home):
    snapshot = keep(home)
    start = time.monotonic()
    assert fetch(REFERENCE) == snapshot
    assert time.monotonic() - start < 5


def test_without_a_network_and_not_cached_one_line_says_what_to_do(home, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    start = time.monotonic()
    message = refusal(REFERENCE)
    assert time.monotonic() - start < 5
    assert message.startswith(f"{REFERENCE}: it is not in {home / 'hub'}")
    assert "Connection refused" in message
    assert message.endswith("use a local file, or run this once with internet access")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_a_hub_that_is_silent_is_asked_once(home, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "timed out" in refusal(REFERENCE)
        assert time.monotonic() - start < 5


def test_offline_mode_is_named(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refusal(REFERENCE)


@pytest.mark.parametrize("missing", FILES)
def test_a_cached_repository_that_is_not_whole_counts_as_none(home, monkeypatch, missing):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    keep(home, {name: content for name, content in FILES.items() if name != missing})
    assert "it is not in" in refusal(REFERENCE)


def test_only_what_is_read_is_downloaded_and_without_a_word(home, online, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    server = online({**FILES, "preprocessor_config.json": b"{}", "pytorch_model.bin": b"pickle", "README.md": b"#"})
    snapshot = fetch(REFERENCE)
    assert snapshot == home / "hub" / "models--timm--mobilenetv2_100.ra_in1k" / "snapshots" / COMMIT
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == {**FILES, "preprocessor_config.json": b"{}"}
    assert {path.rpartition("/")[2] for _, path in server.asked} == {*FILES, "preprocessor_config.json"}
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_a_download_that_breaks_off_is_one_line_and_leaves_nothing_to_be_found(online, monkeypatch, capfd):
    class Broken(Hub):
        def __call__(self, method, path):
            status, headers, body = super().__call__(method, path)
            return status, {**headers, "Content-Length": 1000}, body

    server = online()
    server.answer = Broken()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between the hub's retries
    assert "cannot be downloaded from" in refusal(REFERENCE)
    assert capfd.readouterr() == ("", "")
    server.answer = Hub()
    assert (fetch(REFERENCE) / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_progress_bars_and_messages_of_the_hub_come_back(online):
    online()
    from huggingface_hub.utils import are_progress_bars_disabled, logging

    level = logging.get_verbosity()
    fetch(REFERENCE)
    assert not are_progress_bars_disabled()
    assert logging.get_verbosity() == level


def test_what_was_downloaded_is_found_without_a_network(online, serve):
    server = online()
    snapshot = fetch(REFERENCE)
    server.answer = Hub(error=(503, {}, b""))
    assert fetch(REFERENCE) == snapshot


def test_a_repository_may_have_no_preprocessor_and_that_is_remembered(online):
    server = online()
    snapshot = fetch(REFERENCE)
    assert {path.name for path in snapshot.iterdir()} == set(FILES)
    server.asked.clear()
    assert fetch(REFERENCE) == snapshot
    assert {method for method, _ in server.asked} == {"HEAD"}
    assert {path.rpartition("/")[2] for _, path in server.asked} == {"model.safetensors"}


def test_a_branch_that_has_moved_is_downloaded_again(online):
    server = online()
    fetch(REFERENCE)
    server.answer = Hub({**FILES, "model.safetensors": b"better tensors"}, NEWER)
    snapshot = fetch(REFERENCE)
    assert snapshot.name == NEWER
    assert (snapshot / "model.safetensors").read_bytes() == b"better tensors"


@pytest.mark.parametrize("missing", FILES)
def test_a_repository_without_safetensors_is_refused_and_its_pickle_left(online, missing):
    files = {name: content for name, content in FILES.items() if name != missing}
    server = online({**files, "pytorch_model.bin": b"pickle"})
    assert "has no model.safetensors next to a config.json" in refusal(REFERENCE)
    assert not [path for _, path in server.asked if path.endswith(".bin")]


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("hf://timm/nothing", None, "has no such repository, or it is private"),
        (f"{REFERENCE}@v9", None, "has no revision 'v9'"),
        (REFERENCE, (401, {"X-Error-Code": "RepoNotFound"}, b""), "has no such repository, or it is private"),
        (REFERENCE, (403, {"X-Error-Code": "GatedRepo"}, b""), "its owner has to grant access; request it on "),
        (REFERENCE, (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""), "access (401)"),
        (REFERENCE, (403, {}, b""), "denies access (403)"),
        (REFERENCE, (503, {}, b""), "responded with 503"),
        (REFERENCE, (200, {}, b"<html>log in first</html>"), "cannot be downloaded from"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(online, capfd, reference, error, says):
    online(error=error)
    message = refusal(reference)
    assert message.startswith(f"{reference}: ")
    assert says in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_cached_repository_outlives_its_access(home, online, status):
    snapshot = keep(home)
    online(error=(status, {}, b""))
    assert fetch(REFERENCE) == snapshot


def test_a_revision_that_is_gone_is_not_taken_from_the_cache(home, online):
    keep(home, revision="v1")
    online()
    assert "has no revision 'v1'" in refusal(f"{REFERENCE}@v1")


def test_weights_of_another_size_class_are_not_downloaded(online, monkeypatch):
    monkeypatch.setattr(hub, "MOST_BYTES", 5)
    server = online()
    assert "more than four times as much as any supported network" in refusal(REFERENCE)
    assert {method for method, _ in server.asked} == {"HEAD"}


def test_a_cache_that_cannot_be_written_is_one_line(home, online):
    online()
    home.write_text("a file")
    message = refusal(REFERENCE)
    assert "cannot be read or written" in message
    assert "HF_HOME" in message


@pytest.mark.parametrize(
    "name", ["mobilenet", "a/b/c", "/b", "a/", "a/b@", "a/b@../../x", "../b", "a/b c", "a/b--c", "a/-b", "a/b?x=1", ""]
)
def test_what_is_no_repository_is_refused(home, name):
    assert refusal(f"hf://{name}").startswith(f"hf://{name} is not a repository")


def test_without_the_package_the_extra_is_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'mnv2-jax[hub]'" in refusal(REFERENCE)


# --- torchvision's files ---------------------------------------------------------------------------------

CONTENT = b"a state dict" * 1000
NAME = f"mobilenet_v2-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


@pytest.fixture
def checkpoints(monkeypatch, tmp_path):
    """Provide an empty torch hub folder, no network, and a file of known digest instead of the published ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(hub, "TORCHVISION_URL", f"http://127.0.0.1:{closed_port()}/models")
    monkeypatch.setattr(hub, "TORCHVISION_FILES", {"MobileNet_V2_Weights.DEFAULT": NAME})
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def published(checkpoints, serve, monkeypatch):
    """Return a function that starts a server of the files."""

    def start(body=CONTENT, status=200, **headers):
        server = serve(lambda method, path: (status, headers, body))
        monkeypatch.setattr(hub, "TORCHVISION_URL", f"{server.url}/models")
        return server

    return start


def test_names_of_the_enum_are_those_of_the_files():
    assert hub.TORCHVISION_URL == "https://download.pytorch.org/models"
    assert hub.TORCHVISION_FILES == {
        "MobileNet_V2_Weights.IMAGENET1K_V1": "mobilenet_v2-b0353104.pth",
        "MobileNet_V2_Weights.IMAGENET1K_V2": "mobilenet_v2-7ebf99e0.pth",
        "MobileNet_V2_Weights.DEFAULT": "mobilenet_v2-7ebf99e0.pth",
    }


@pytest.mark.parametrize("name", [NAME, "MobileNet_V2_Weights.DEFAULT"])
def test_a_file_is_downloaded_once_and_keeps_its_name(checkpoints, published, capfd, name):
    server = published()
    assert fetch(f"torchvision://{name}") == fetch(f"torchvision://{name}") == checkpoints / NAME
    assert (checkpoints / NAME).read_bytes() == CONTENT
    assert server.asked == [("GET", f"/models/{NAME}")]
    assert os.listdir(checkpoints) == [NAME]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("variable", "below"), [("XDG_CACHE_HOME", "torch"), ("HOME", ".cache/torch")])
def test_the_folder_is_torch_hubs(checkpoints, monkeypatch, tmp_path, variable, below):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "here"))
    path = tmp_path / "here" / below / "hub" / "checkpoints" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch(f"torchvision://{NAME}") == path


def test_a_damaged_file_in_the_cache_is_named_and_left(checkpoints, published):
    server = published()
    checkpoints.mkdir(parents=True)
    (checkpoints / NAME).write_bytes(CONTENT[:-1])
    message = refusal(f"torchvision://{NAME}")
    assert message.startswith(f"{checkpoints / NAME} is damaged")
    assert "delete it" in message
    assert (checkpoints / NAME).read_bytes() == CONTENT[:-1]
    assert server.asked == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"body": b"<html>log in first</html>"}, "arrived damaged: its SHA-256 begins with "),
        ({"body": CONTENT[:500], "Content-Length": len(CONTENT)}, f"was cut short after 500 of {len(CONTENT)} bytes"),
        ({"body": b"", "Content-Length": 1 << 40}, "was cut short after 0 of"),
        ({"status": 404}, "the server responded with 404 (Not Found)"),
        ({"status": 503}, "the server responded with 503"),
        ({"Content-Length": "many"}, "cannot be reached"),
    ],
)
def test_what_comes_otherwise_is_refused_and_leaves_nothing(checkpoints, published, answer, says):
    published(**answer)
    message = refusal(f"torchvision://{NAME}")
    assert NAME in message
    assert says in message
    assert os.listdir(checkpoints) == []


@pytest.mark.parametrize("declared", [True, False])
def test_a_file_that_is_too_large_is_not_read_to_its_end(checkpoints, published, monkeypatch, declared):
    monkeypatch.setattr(hub, "MOST_BYTES", 1 << 20)
    published(bytes(3 << 20), **({} if declared else {"Content-Length": ""}))
    assert "is larger than 1 MiB" in refusal(f"torchvision://{NAME}")
    assert os.listdir(checkpoints) == []


def test_without_a_network_one_line_says_where_the_file_is_and_what_to_do(checkpoints):
    message = refusal(f"torchvision://{NAME}")
    assert message.startswith(f"{NAME} is not in {checkpoints}, and {hub.TORCHVISION_URL}/{NAME} cannot be reached")
    assert "(Connection refused)" in message
    assert message.endswith("use a local file, or run this once with internet access")
    assert os.listdir(checkpoints) == []


def test_a_server_that_is_silent_is_given_up(checkpoints, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub, "TORCHVISION_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached (timed out)" in refusal(f"torchvision://{NAME}")
    assert os.listdir(checkpoints) == []


def test_a_folder_that_cannot_be_written_is_one_line(checkpoints, published):
    published()
    checkpoints.parents[1].write_text("a file")
    message = refusal(f"torchvision://{NAME}")
    assert "cannot be read or written (Not a directory)" in message
    assert "TORCH_HOME" in message


@pytest.mark.parametrize("name", ["resnet18-f37072fd.pth", "../x.pth", "MobileNet_V2_Weights.IMAGENET1K_V3", ""])
def test_another_file_is_refused_with_those_known(name):
    message = refusal(f"torchvision://{name}")
    for known in ("mobilenet_v2-b0353104.pth", "mobilenet_v2-7ebf99e0.pth", "MobileNet_V2_Weights.DEFAULT"):
        assert known in message
