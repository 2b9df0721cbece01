"""Inputs of the campaign's commands: intact and damaged files, networks, runs, studies and folders of images."""

import contextlib
import json
import os
import shutil
import socket
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from commands.conftest import FLAGS, TwoBlocks, compiled_once, random_network
from samples import encoded, write_folder

from experiments import scripts
from mnv2_jax import MobileNetV2, cli
from mnv2_jax.ablation import design
from mnv2_jax.commands import train
from mnv2_jax.models import names
from mnv2_jax.models.backbone import Stage
from mnv2_jax.network import save_network
from mnv2_jax.training import run as run_module
from mnv2_jax.training.devices import Devices
from mnv2_jax.weights import mapping
from mnv2_jax.weights.files import safetensors_bytes
from mnv2_jax.weights.load import export_weights
from mnv2_jax.weights.transformers import TRANSFORMERS

STAGES = ((1, 16, 1, 1), (2, 24, 1, 2))

JSON_DAMAGE = {
    "empty": b"",
    "cut": b'{"dataset": "dig',
    "garbage": bytes(range(256)),
    "zeroed": bytes(200),
    "list": b"[1, 2, 3]",
    "number": b"7",
    "null": b"null",
    "other": b'{"something": "else"}',
    "text": b"a letter to a friend\n",
}
"""What a JSON file may hold instead of what was written."""


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Train runs and studies with networks of two blocks, each run on one device."""
    patch.setitem(names.MODELS, "mobilenet_v2", TwoBlocks)
    patch.setattr(run_module, "trace_programs", compiled_once)
    create = Devices.create

    def of_one(runs=1, per_run=1, *given, **named):
        return create(runs, per_run, *given, **named)

    patch.setattr(Devices, "create", of_one)
    whole = design.shared_settings

    def shared_settings(options):
        return {**whole(options), "stages": STAGES}

    patch.setattr(design, "shared_settings", shared_settings)
    for name in ("ablate_residual", "ablate_expansion"):
        patch.setattr(scripts.load(name), "shared_settings", shared_settings)


def make_world(folder: Path) -> None:
    """Fill a folder with files and folders, named as in the table."""
    _images(folder)
    _networks(folder)
    _runs(folder)
    _odd_files(folder)


def _images(folder: Path) -> None:
    write_folder(folder / "photos", images=12, width=24, height=20)
    write_folder(folder / "one_class", classes=("cat",), images=4, width=24, height=20)
    write_folder(folder / "few", images=2, width=24, height=20)
    write_folder(folder / "other_classes", classes=("oak", "elm", "ash"), images=12, width=24, height=20)
    shutil.copytree(folder / "photos", folder / "empty_class")
    (folder / "empty_class" / "eel").mkdir()
    shutil.copytree(folder / "photos", folder / "split" / "train")
    shutil.copytree(folder / "other_classes", folder / "split" / "val")
    shutil.copytree(folder / "photos", folder / "nested" / "photos")
    shutil.copytree(folder / "photos", folder / "stray")
    (folder / "stray" / "0.jpg").write_bytes(encoded(0, 24, 20))
    for part in ("train", "val", "valid"):
        shutil.copytree(folder / "photos", folder / "twice" / part)
    shutil.copytree(folder / "photos", folder / "held_out" / "val")
    shutil.copytree(folder / "photos", folder / "heic")
    for path in (folder / "heic").rglob("*.jpg"):
        path.rename(path.with_suffix(".heic"))
    shutil.copytree(folder / "photos" / "cat", folder / "alike" / unicodedata.normalize("NFC", "café"))
    shutil.copytree(folder / "photos" / "cat", folder / "alike" / unicodedata.normalize("NFD", "café"))
    (folder / "nothing").mkdir()
    (folder / "flat").mkdir()
    for index in range(3):
        (folder / "flat" / f"{index}.jpg").write_bytes(encoded(index, 24, 20))
    shutil.copytree(folder / "photos", folder / "damaged_photos")
    for path in sorted((folder / "damaged_photos" / "cat").iterdir()):
        path.write_bytes(path.read_bytes()[:200])
    whole = encoded(0, 24, 20)
    (folder / "photo.jpg").write_bytes(whole)
    (folder / "cut.jpg").write_bytes(whole[:200])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "strip.png").write_bytes(encoded(0, 900, 2, kind="PNG"))


def _networks(folder: Path) -> None:
    stages = tuple(Stage(*row) for row in STAGES)
    network = random_network(MobileNetV2(3, 0.1, stages=stages), preprocessing="torchvision")
    save_network(folder / "network", network)
    for name, changes in {
        "hf_gelu": {"hidden_act": "gelu"},
        "hf_stride": {"output_stride": 4},
        "hf_wider": {"depth_multiplier": 1.4},
        "hf_garbage": {},
    }.items():
        (folder / name).mkdir()
        own = random_network(MobileNetV2(3, 0.35), "transformers", "transformers")
        tensors = mapping.export(TRANSFORMERS, own.model, own.variables)
        (folder / name / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        config = {"model_type": "mobilenet_v2", "depth_multiplier": 0.35, "image_size": 32, **changes}
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "hf_garbage" / "preprocessor_config.json").write_bytes(bytes(range(256)))
    headless = MobileNetV2(0, 0.1, stages=stages)
    save_network(folder / "headless", random_network(headless, class_names=None))
    for name, content in JSON_DAMAGE.items():
        damaged = folder / f"network_{name}"
        shutil.copytree(folder / "network", damaged)
        (description,) = [path for path in (damaged / "description").iterdir() if path.name == "metadata"]
        description.write_bytes(content)
    for name in ("arrays_cut", "arrays_zeroed", "arrays_gone"):
        damaged = folder / f"network_{name}"
        shutil.copytree(folder / "network", damaged)
        data = max(
            (path for path in (damaged / "variables").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
        )
        content = data.read_bytes()
        if name == "arrays_gone":
            data.unlink()
        else:
            half = content[: len(content) // 2]
            data.write_bytes(half if name == "arrays_cut" else half + bytes(len(content) - len(half)))


def _runs(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(sys.stderr):
        make_quick(patch)
        published = random_network(
            TwoBlocks(10, 0.35, convention="pytorch"), preprocessing="torchvision", class_names=None
        )
        export_weights(folder / "published.safetensors", published, "torchvision")
        train.main(cli.parse(train.Options, "", [*FLAGS, "--out", str(folder / "run")]))
        script = scripts.load("ablate_bottleneck")
        flags = "--seeds 2 --epochs 1 --train-images 64 --batch-size 32 --evaluations 1 --resolution 12 --width-multiplier 0.1"
        script.main(cli.parse(script.Options, "", [*flags.split(), "--out", str(folder / "study")]))
    for name, content in JSON_DAMAGE.items():
        for kind, file in (("run", "config.json"), ("study", "config.json"), ("study", "summary.json")):
            _copy_with(folder / kind, folder / f"{kind}_{file.removesuffix('.json')}_{name}", file, content)
        if name not in ("empty", "cut"):  # a last line like that is left by an interruption, and accepted
            for kind in ("run", "study"):
                _copy_with(folder / kind, folder / f"{kind}_metrics_{name}", "metrics.jsonl", content + b"\n")


def _copy_with(whole: Path, damaged: Path, file: str, content: bytes) -> None:
    shutil.copytree(whole, damaged)
    (damaged / file).write_bytes(content)


def _odd_files(folder: Path) -> None:
    for name, array in {
        "flat.npy": np.zeros((32, 32, 3), np.float32),
        "grey.npy": np.zeros((2, 32, 32, 1), np.float32),
        "four.npy": np.zeros((2, 32, 32, 4), np.float32),
        "nchw.npy": np.zeros((2, 3, 32, 32), np.float32),
        "double.npy": np.zeros((2, 32, 32, 3)),
        "none.npy": np.zeros((0, 32, 32, 3), np.float32),
        "nan.npy": np.full((2, 32, 32, 3), np.nan, np.float32),
        "objects.npy": np.array([{}, []], object),
    }.items():
        np.save(folder / name, array)
    np.savez(folder / "several.npz", a=np.zeros(3))
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("letter.txt", "a letter")
    (folder / "gap.txt").write_text("one\n\nthree\n" + "more\n" * 7)
    (folder / "text.npy").write_text("no array")
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "text.pth").write_text("no pickle")
    (folder / "text.keras").write_text("no archive")
    (folder / "text.weights.h5").write_text("no HDF5")
    (folder / "letter.txt").write_text("a letter\n")
    (folder / "two_names.txt").write_text("one\ntwo\n")
    (folder / "latin.txt").write_bytes("één\n".encode("latin-1") * 10)
    (folder / "somebodys").mkdir()
    (folder / "somebodys" / "thesis.tex").write_text("years of work")
    (folder / "config_of_another").mkdir()
    (folder / "config_of_another" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    os.mkfifo(folder / "pipe.jpg")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener, contextlib.chdir(folder):
        listener.bind("socket.jpg")
