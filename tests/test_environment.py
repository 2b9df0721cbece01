"""Properties of the machine that commands depend on."""

import json
import subprocess

import pytest

from mnv2_jax.environment import _commit, core_count, environment, is_tpu_host


@pytest.fixture
def devices(tmp_path):
    """Create a folder of PCI devices with these vendors."""

    def devices(*vendors):
        for number, vendor in enumerate(vendors):
            folder = tmp_path / f"0000:00:{number:02}.0"
            folder.mkdir()
            (folder / "vendor").write_text(f"{vendor}\n")
        return tmp_path

    return devices


def test_a_tpu_is_known_by_its_vendor(devices):
    bus = devices("0x8086", "0x1ae0")
    assert is_tpu_host({}, bus)
    assert not is_tpu_host({}, bus / "0000:00:00.0")


def test_no_tpu_without_a_pci_bus_or_with_other_devices_alone(devices, tmp_path):
    assert not is_tpu_host({}, tmp_path / "nowhere")
    assert not is_tpu_host({}, devices("0x8086", "0x10de"))


@pytest.mark.parametrize(("platforms", "expected"), [("", True), ("tpu", True), ("cpu", False), ("cuda,cpu", False)])
def test_tpus_that_are_not_to_be_used_do_not_count(devices, platforms, expected):
    assert is_tpu_host({"JAX_PLATFORMS": platforms}, devices("0x1ae0")) is expected


def test_the_commit_is_that_of_the_source_and_of_no_repository_around_a_package(tmp_path):
    (tmp_path / "site-packages").mkdir()
    for command in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-q", "--allow-empty", "-m", "a"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    assert len(_commit(tmp_path)) == 12
    assert _commit(tmp_path / "site-packages") == "unknown"


def test_the_environment_is_json_with_versions_devices_and_commit():
    found = json.loads(json.dumps(environment()))
    assert {"mnv2_jax", "jax", "flax", "optax", "python", "device", "git"} < found.keys()
    assert found["device_count"] == 8
    assert core_count() >= 1
