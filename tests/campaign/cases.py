"""The table of bad input: a command, its flags, and what the one line must say.

Every flag of every command gets values that its type rules out (`wrong_values`): a new flag or command is in the table
by itself. What takes knowledge of the flag stands below, by hand. `{world}` is the folder of `campaign.world`.
"""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import NamedTuple

from experiments.scripts import EXPERIMENTS, STUDIES

from campaign.conftest import module_of
from mnv2_jax.__main__ import COMMANDS
from mnv2_jax.ablation.design import StudyOptions


class Case(NamedTuple):
    """Flags of a command, and words of the line that refuses them."""

    command: str
    flags: tuple[str, ...]
    says: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.command, *self.flags)).replace("{world}/", "")


SCRIPTS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if "class Options" in path.read_text())

STUDY = "--seeds 2 --epochs 1 --train-images 64 --batch-size 32 --evaluations 1 --resolution 12 --width-multiplier 0.1"
VALID = {
    "train": "--epochs 1 --train-images 64 --batch-size 32 --evaluations 1 --resolution 12 --width-multiplier 0.1",
    "predict": "--weights {world}/network --image {world}/photo.jpg",
    "evaluate": "--weights {world}/run",
    "convert": "--input {world}/published.safetensors --output out",
    "summary": "--width-multiplier 0.1",
    "plan": "",
    **dict.fromkeys(STUDIES, STUDY),
}
"""Flags with which a command would do its work: what is wrong is what a case adds to them."""

UNLIKE_OTHERS = {("datasets", "action")}
"""What has no name on the command line."""


# --- What a flag's type rules out --------------------------------------------------------------------------


def flags_of(options: type) -> Iterator[tuple[str, object]]:
    """(flag, type) of every field, those of nested groups included."""
    hints = typing.get_type_hints(options, include_extras=False)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from flags_of(kind)
        else:
            yield field.name, kind


def wrong_values(kind: object) -> tuple[str, ...]:
    """Values that no flag of a type has. For numbers this takes what no count, size or share is."""
    inner = [each for each in typing.get_args(kind) if each not in (type(None), Ellipsis)]
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple):
        return wrong_values(inner[0]) if len(set(inner)) == 1 else ()
    if typing.get_origin(kind) is typing.Literal:
        return ("foo", "")
    return {int: ("one", "1.5", "-1", ""), float: ("much", "nan", "-inf", "")}.get(kind, ())  # type: ignore[call-overload]


def generated(command: str) -> Iterator[Case]:
    """A case for each flag of a command and each value that its type rules out."""
    options = module_of(command).Options
    # All studies share their flags: one of them has each tried.
    shared = {name for name, _ in flags_of(StudyOptions)} if command in STUDIES[1:] else set()
    for name, kind in flags_of(options):
        flag = f"--{name.replace('_', '-')}"
        for value in wrong_values(kind) if name not in shared else ():
            if (command, name) not in UNLIKE_OTHERS:
                yield Case(command, (*VALID.get(command, "").split(), f"{flag}={value}"), (flag,))
    yield Case(command, ("--no-such-flag",), ("--no-such-flag",))
    yield Case(command, ("--no-such-flag=3",), ("--no-such-flag",))


# --- What takes knowledge of the flag ----------------------------------------------------------------------


def table() -> Iterator[Case]:
    """The cases by hand."""
    for command, flags, *says in (*RUNS, *TRAINED, *CONVERSIONS, *STUDIES_AND_REPORTS, *OTHERS):
        valid = "" if flags.startswith("! ") else VALID.get(command, "")
        yield Case(command, (*valid.split(), *flags.removeprefix("! ").split()), tuple(says))


RUNS = [
    ("train", "--dataset nowhere", "nowhere"),
    ("train", "--dataset", "--dataset"),
    ("train", "--dataset folder", "--data-files"),
    ("train", "--dataset folder --data-files {world}/missing", "missing", "not a folder"),
    ("train", "--dataset folder --data-files {world}/photo.jpg", "photo.jpg", "not a folder"),
    ("train", "--dataset folder --data-files {world}/nothing", "nothing", "subfolder"),
    ("train", "--dataset folder --data-files {world}/flat", "flat", "subfolder"),
    ("train", "--dataset folder --data-files {world}/one_class", "one_class"),
    ("train", "--dataset folder --data-files {world}/few", "2 images"),
    ("train", "--dataset folder --data-files {world}/empty_class", "eel"),
    ("train", "--dataset folder --data-files {world}/split", "other classes"),
    *[("train", f"--dataset folder --data-files {{world}}/{name}", says) for name, says in
      (("nested", "holds one folder"), ("stray", "images beside its class folders"), ("twice", "expected one of them"),
       ("heic", "cannot be read here"), ("alike", "that look alike"), ("held_out", "to test on alone"))],
    ("train", "--dataset digits --data-files {world}/photos", "--data-files"),
    ("train", "--dataset fashion_mnist --data-files {world}/nothing", "ubyte"),
    ("train", "--model foo", "--model", "mobilenet_v1"),
    ("train", "--width-multiplier 0", "--width-multiplier", "greater than 0"),
    ("train", "--width-multiplier 1e-320", "--width-multiplier"),
    ("train", "--width-multiplier 1e9", "--width-multiplier"),
    ("train", "--expansion 0", "--expansion"),
    ("train", "--expansion 1e9", "--expansion"),
    ("train", "--unit-strides 9", "--unit-strides", "0 to 5"),
    ("train", "--model mobilenet_v1 --expansion 3", "mobilenet_v1 has no --expansion"),
    ("train", "--model mobilenet_v1 --bottleneck-activation relu6", "mobilenet_v1 has no --bottleneck-activation"),
    ("train", "--bottleneck-activation gelu", "gelu"),
    ("train", "--convention foo", "--convention"),
    ("train", "--output-stride 5", "--output-stride"),
    ("train", "--resolution 0", "--resolution"),
    ("train", "--resolution 100000", "--resolution"),
    ("train", "--train-images 0", "--train-images"),
    ("train", "--train-images 5", "--batch-size 32"),
    ("train", "--batch-size 100000", "--batch-size"),
    ("train", "--batch-size 0", "--batch-size"),
    ("train", "--epochs 0", "--epochs"),
    ("train", "--epochs 10000000000", "--epochs"),
    ("train", "--learning-rate 0", "--learning-rate"),
    ("train", "--learning-rate inf", "--learning-rate"),
    ("train", "--learning-rate-images 0", "--learning-rate-images"),
    ("train", "--momentum 1", "--momentum"),
    ("train", "--momentum 1.5", "--momentum"),
    ("train", "--label-smoothing 1", "--label-smoothing"),
    ("train", "--dropout-rate 1", "--dropout-rate"),
    ("train", "--ema-decay 1", "--ema-decay"),
    ("train", "--warmup 1", "--warmup"),
    ("train", "--batch-norm-momentum 1", "--batch-norm-momentum"),
    ("train", "--smallest-crop 0", "--smallest-crop"),
    ("train", "--smallest-crop 1.1", "--smallest-crop"),
    ("train", "--epoch-decay 0", "--epoch-decay"),
    ("train", "--weight-decay inf", "--weight-decay"),
    ("train", "--accumulation 3", "3 microbatches"),
    ("train", "--accumulation 64", "64 microbatches"),
    ("train", "--images 8", "--images 8"),
    ("train", "--recipe foo", "--recipe"),
    ("train", "--seed 4294967296", "--seed"),
    ("train", "--keep 0", "--keep"),
    ("train", "--log-every 0", "--log-every"),
    ("train", "--checkpoint-every 0", "--checkpoint-every"),
    ("train", "--profile 3", "--profile"),
    ("train", "--profile 3:2", "--profile"),
    ("train", "--profile a:b", "--profile"),
    ("train", "--profile 0:1", "--profile"),
    ("train", "--freeze backbone", "--weights"),
    ("train", "--frozen-batch-norm", "--weights"),
    ("train", "--backbone-learning-rate 0.1", "--weights"),
    ("train", "--out {world}/letter.txt", "letter.txt", "file"),
    ("train", "--out {world}/letter.txt/below", "letter.txt"),
    ("train", "--out {world}/somebodys", "thesis.tex"),
    ("train", "--out {world}/photos", "photos"),
    ("train", "--out {world}/network", "network"),
    ("train", "--out {world}/study", "no run"),
    ("train", "--out {world}/study --overwrite", "no run"),
    ("train", "--out {world}/config_of_another", "no run"),
    ("train", "--out {world}/config_of_another --overwrite", "no run"),
    ("train", "--out {world}/run --seed 5", "seed is 0 there and 5 here"),
    ("train", "--out {world}/run", "another run"),
    ("train", "--out /proc/nowhere", "/proc/nowhere"),
    ("train", "--out gs://bucket/run", "gs://"),
    ("train", "--out s3://bucket/run", "s3://"),
    ("train", "--coordinator nowhere", "--coordinator"),
    ("train", "--coordinator 127.0.0.1:1234 --processes 2 --process-id 2", "--process-id"),
    ("train", "--processes 2", "--process"),
    ("train", "stray", "unrecognized argument stray"),
    ("train", "--batch-siz 3", "did you mean --batch-size?"),
    ("train", "--rmsprop-epsilon 0.1", "--optimizer rmsprop"),
    ("train", "--epoch-decay 0.9", "--schedule exponential"),
    ("train", "--learning-rate 1e-320", "--learning-rate"),
    ("train", "--batch-size 1 --resolution 1", "one image of one pixel"),
    ("train", "--coordinator localhost:65536 --processes 2 --process-id 0", "HOST:PORT"),
    ("train", "--out $NOT_SET_HERE/x", "NOT_SET_HERE is not set"),
    ("train", "--out ~nobody-here/x", "no home folder"),
    ("train", "--weights {world}/missing", "missing"),
    ("train", "--weights {world}/text.pth", "text.pth"),
    ("train", "--weights {world}/network --width-multiplier 1", "width"),
    ("train", "--weights {world}/network_arrays_cut", "network_arrays_cut"),
    ("train", "--weights ftp://somewhere/x", "ftp://"),
    ("train", "--weights hf://", "hf://"),
    ("train", "--weights hf://a/b/c/d", "hf://"),
    ("train", "--weights torchvision://resnet50", "resnet50"),
    *[("train", f"--out {{world}}/run_config_{name}", f"run_config_{name}") for name in
      ("empty", "cut", "garbage", "zeroed", "list", "number", "null", "other", "text")],
]  # fmt: skip

TRAINED = [
    *[
        (command, f"! --weights {{world}}/{weights} {rest}", says)
        for command, rest in (("predict", "--image {world}/photo.jpg"), ("evaluate", "--dataset digits"))
        for weights, says in (
            ("missing", "missing"),
            ("nothing", "nothing"),
            ("photos", "photos"),
            ("photo.jpg", "photo.jpg"),
            ("pipe.jpg", "pipe.jpg"),
            ("letter.txt", "letter.txt"),
            ("text.safetensors", "text.safetensors"),
            ("text.pth", "text.pth"),
            ("text.keras", "text.keras"),
            ("text.weights.h5", "text.weights.h5"),
            ("several.npz", "several.npz"),
            ("grey.npy", "grey.npy"),
            ("config_of_another", "config_of_another"),
            ("network_arrays_cut", "network_arrays_cut"),
            ("network_arrays_zeroed", "network_arrays_zeroed"),
            ("network_arrays_gone", "network_arrays_gone"),
            *((f"network_{name}", f"network_{name}") for name in
              ("empty", "cut", "garbage", "zeroed", "list", "number", "null", "other", "text")),
        )
    ],
    *[("predict", f"! --weights {reference} --image {{world}}/photo.jpg", reference) for reference in
      ("ftp://a/b", "hf://", "hf://a", "hf://a/../b", "torchvision://resnet18")],
    ("predict", "! --image {world}/photo.jpg", "--weights"),
    ("predict", "! --weights {world}/network", "--image"),
    ("predict", "--array {world}/flat.npy", "one of the two"),
    ("predict", "--top 0", "--top"),
    ("predict", "--resolution 0", "--resolution"),
    ("predict", "--resolution 5000", "--resolution"),
    ("predict", "! --weights {world}/headless --image {world}/photo.jpg", "no classifier"),
    *[("predict", f"! --weights {{world}}/network --image {{world}}/{image}", image) for image in
      ("missing.jpg", "nothing", "cut.jpg", "empty.jpg", "text.jpg", "strip.png", "letter.txt", "pipe.jpg", "socket.jpg", "network")],
    *[("predict", f"! --weights {{world}}/network --array {{world}}/{array}", array) for array in
      ("missing.npy", "flat.npy", "grey.npy", "four.npy", "nchw.npy", "double.npy", "none.npy", "nan.npy", "objects.npy",
       "several.npz", "text.npy", "photo.jpg", "photos", "pipe.jpg")],
    ("evaluate", "! --dataset digits", "--weights"),
    ("evaluate", "! --weights {world}/network", "--dataset"),
    ("evaluate", "--dataset nowhere", "nowhere"),
    ("evaluate", "--dataset folder", "--data-files"),
    ("evaluate", "--dataset folder --data-files {world}/missing", "missing"),
    ("evaluate", "--dataset folder --data-files {world}/nothing", "nothing"),
    ("evaluate", "--dataset folder --data-files {world}/photos", "cat"),
    ("evaluate", "! --weights {world}/network --dataset folder --data-files {world}/other_classes", "oak"),
    ("evaluate", "--data-files {world}/photos", "--data-files"),
    ("evaluate", "--split all_of_it", "--split"),
    ("evaluate", "--resolution 0", "--resolution"),
    ("evaluate", "--on-bad-image ignore", "--on-bad-image"),
]  # fmt: skip

CONVERSIONS = [
    ("convert", "! --output out", "--input"),
    ("convert", "! --input {world}/published.safetensors", "--output"),
    ("convert", "! --input {world}/published.safetensors --output {world}/letter.txt", "letter.txt exists"),
    ("convert", "! --input {world}/published.safetensors --output {world}/letter.txt --overwrite", "letter.txt is a file"),
    ("convert", "! --input {world}/published.safetensors --output {world}/somebodys --overwrite", "holds more than a network"),
    ("convert", "! --input {world}/published.safetensors --output {world}/run --overwrite", "holds more than a network"),
    ("convert", "! --input {world}/published.safetensors --output {world}/network", "network exists"),
    ("convert", "! --input {world}/published.safetensors --output {world}/letter.txt/below", "letter.txt"),
    ("convert", "! --input {world}/published.safetensors --output /proc/nowhere", "/proc/nowhere"),
    ("convert", "! --input {world}/published.safetensors --output gs://bucket/network", "gs://"),
    ("convert", "! --input {world}/published.safetensors --output {world}/somebodys/x.pth --target keras", ".h5"),
    ("convert", "! --input {world}/published.safetensors --output x.h5 --target torchvision", ".safetensors or .pth"),
    ("convert", "! --input {world}/published.safetensors --output x.h5 --target keras", "convention"),
    ("convert", "! --input {world}/network --output x.safetensors --target torchvision", "convention"),
    ("convert", "--target tflite", "--target"),
    ("convert", "--source keras", "torchvision"),
    ("convert", "--source foo", "--source"),
    ("convert", "--drop-background", "10 classes"),
    ("convert", "--class-names {world}/missing.txt", "missing.txt"),
    ("convert", "--class-names {world}/two_names.txt", "2 lines", "10 classes"),
    ("convert", "--class-names {world}/latin.txt", "latin.txt"),
    ("convert", "--class-names {world}/photos", "photos"),
    ("convert", "--preprocessing foo", "foo", "torchvision"),
    ("convert", "--resolution 0", "--resolution"),
    *[("convert", f"! --output out --input {{world}}/{name}", name) for name in
      ("missing", "nothing", "photo.jpg", "text.safetensors", "text.pth", "text.keras", "text.weights.h5", "several.npz",
       "letter.txt", "pipe.jpg", "config_of_another", "network_cut", "network_arrays_cut", "network_arrays_zeroed")],
    *[("convert", f"! --output out --input {{world}}/{name}", says) for name, says in
      (("several.npz", "is a NumPy archive"), ("archive.zip", "is a zip archive"), ("hf_gelu", 'says hidden_act "gelu"'),
       ("hf_stride", "says output_stride 4"), ("hf_wider", "and the tensors are of"), ("hf_garbage", "cannot be read"))],
    ("convert", "--outputs foo", "--outputs"),
    ("convert", "! --output out --outputs sigmoid --input {world}/headless", "no classifier"),
    ("convert", "--class-names {world}/pipe.jpg", "is no file"),
    ("convert", "--class-names {world}/gap.txt", "no name in line 2"),
    ("convert", "! --output out --input https://somewhere/weights.pth", "https://"),
]  # fmt: skip

STUDIES_AND_REPORTS = [
    ("ablate_bottleneck", "--seeds 1", "--seeds"),
    ("ablate_bottleneck", "--seeds 0", "--seeds"),
    ("ablate_bottleneck", "--seeds 100000000", "--seeds"),
    ("ablate_bottleneck", "--activation linear", "linear"),
    ("ablate_bottleneck", "--activation foo", "foo"),
    ("ablate_bottleneck", "--activation", "no arm to compare linear with"),
    ("ablate_bottleneck", "--arms nowhere", "nowhere", "relu6"),
    ("ablate_bottleneck", "--dataset nowhere", "nowhere"),
    ("ablate_bottleneck", "--dataset folder", "--data-files"),
    ("ablate_bottleneck", "--epochs 0", "--epochs"),
    ("ablate_bottleneck", "--width-multiplier 0", "--width-multiplier"),
    ("ablate_bottleneck", "--expansion 0", "--expansion"),
    ("ablate_bottleneck", "--unit-strides 9", "--unit-strides"),
    ("ablate_bottleneck", "--kernels foo", "--kernels"),
    ("ablate_bottleneck", "--train-images 5", "--batch-size"),
    ("ablate_bottleneck", "--validation-images 0", "--validation-images"),
    ("ablate_bottleneck", "--freeze backbone", "--freeze"),
    ("ablate_bottleneck", "--out {world}/letter.txt", "letter.txt"),
    ("ablate_bottleneck", "--out {world}/somebodys", "thesis.tex"),
    ("ablate_bottleneck", "--out {world}/run", "no study"),
    ("ablate_bottleneck", "--out {world}/run --overwrite", "no study"),
    ("ablate_bottleneck", "--out {world}/study --width-multiplier 0.2", "width_multiplier is 0.1 there and 0.2 here"),
    ("ablate_bottleneck", "--out {world}/study --seeds 2 --epochs 2", "epochs is 1 there and 2 here"),
    ("ablate_bottleneck", "--out gs://bucket/study", "gs://"),
    ("ablate_bottleneck", "--input foo", "--input"),
    *[("ablate_bottleneck", f"--out {{world}}/study_config_{name}", f"study_config_{name}") for name in
      ("empty", "cut", "garbage", "zeroed", "list", "number", "null", "other", "text")],
    *[("ablate_bottleneck", f"--out {{world}}/study_metrics_{name}", f"study_metrics_{name}") for name in
      ("garbage", "zeroed", "list", "number", "null", "other", "text")],
    ("ablate_bottleneck", "--width-multiplier None", "--width-multiplier"),
    ("ablate_expansion", "--expansions 5.999", "the same network"),
    ("null_studies", "--seeds 8 6", "--seeds"),
    ("null_studies", "--comparisons 0", "--comparisons"),
    ("null_studies", "--studies 1", "--studies"),
    ("null_studies", "--out {world}/somebodys", "thesis.tex"),
    ("ablate_residual", "--question foo", "--question"),
    ("ablate_residual", "--convolution foo", "--convolution"),
    ("ablate_residual", "--arms foo", "foo"),
    ("ablate_expansion", "--expansions 0", "0"),
    ("ablate_expansion", "--expansions 6", "no arm to compare"),
    ("ablate_expansion", "--at foo", "--at"),
    ("width_resolution", "--widths 0", "0"),
    ("width_resolution", "--resolutions 0", "0"),
    ("expressiveness", "--bottlenecks 0", "0"),
    ("expressiveness", "--inners -1", "-1"),
    ("compare_v1_v2", "--arms foo", "foo"),
    ("ablate_depthwise_nonlinearity", "--arms foo", "foo"),
    ("transfer", "--weights {world}/missing", "missing"),
    ("transfer", "--weights {world}/headless --dataset nowhere", "nowhere"),
    ("transfer", "--weights {world}/text.pth", "text.pth"),
    ("report", "", "folder"),
    *[("report", f"{{world}}/{name}", name) for name in
      ("missing", "nothing", "run", "network", "photo.jpg", "config_of_another",
       *(f"study_summary_{name}" for name in ("empty", "cut", "garbage", "zeroed", "list", "number", "null", "other", "text")),
       *(f"study_metrics_{name}" for name in ("garbage", "zeroed", "list", "number", "null", "other", "text")))],
    ("report", "{world}/study {world}/missing", "missing"),
    ("report", "{world}/study {world}/study --out {world}", "--out"),
    ("report", "{world}/study {world}/study --out /", "--out"),
    ("report", "{world}/study --out page.html", "several studies"),
    ("report", "{world}/study {world}/study --out gs://bucket/report.html", "gs://"),
]  # fmt: skip

OTHERS = [
    ("summary", "--resolution 0", "--resolution"),
    ("summary", "--resolution 100000", "--resolution"),
    ("summary", "--num-classes 1000000000000", "--num-classes"),
    ("summary", "--width-multiplier 0", "--width-multiplier"),
    ("summary", "--width-multiplier 1e-320", "--width-multiplier"),
    ("summary", "--width-multiplier 100", "--width-multiplier"),
    ("summary", "--expansion 1e-320", "--expansion"),
    ("summary", "--model mobilenet_v1 --expansion 2", "mobilenet_v1 has no --expansion"),
    ("summary", "--unit-strides 6", "--unit-strides"),
    ("datasets", "prepare", "NAME"),
    ("datasets", "prepare nowhere", "nowhere"),
    ("datasets", "prepare fashion_mnist --data-files {world}/nothing", "ubyte"),
    ("datasets", "prepare fashion_mnist --data-files {world}/missing", "missing"),
    ("datasets", "prepare ../digits", "../digits"),
    ("datasets", "list digits", "list"),
    ("datasets", "remove digits", "remove"),
    ("plan", "--topology v9:1x1", "v9"),
    ("plan", "--topology v5e", "v5e"),
    ("plan", "--topology v5e:3", "v5e"),
    ("plan", "--batch-per-device 0", "--batch-per-device"),
    ("plan", "--accumulation 3", "--accumulation"),
    ("plan", "--num-classes 0", "--num-classes"),
    ("plan", "--resolution 0", "--resolution"),
    ("plan", "--compare foo", "foo"),
    ("plan", "--compare dtype=int4", "dtype"),
    ("plan", "--compare study=x", "study"),
    ("plan", "--compare dtype=float32 --sweep-batch", "--sweep-batch"),
    ("plan", "--study {world}/missing.py", "missing.py"),
    ("plan", "--study {world}/letter.txt", "letter.txt"),
    ("plan", "--study x.py --resolution 96", "--resolution"),
    ("memory_split", "--topology v9", "v9"),
    ("memory_split", "--splits 0", "--splits"),
    ("memory_split", "--rounds 0", "--rounds"),
    ("memory_split", "--resolution 0", "--resolution"),
    ("memory_split", "--out {world}/somebodys", "thesis.tex"),
    ("memory_split", "--out {world}/study --overwrite", "no computation"),
    ("plan_scaling", "--topologies v9:1x1", "v9"),
    ("plan_scaling", "--batch-per-device 0", "--batch-per-device"),
    ("plan_scaling", "--out {world}/somebodys", "thesis.tex"),
    ("relu_embedding", "--channels 0", "--channels"),
    ("relu_embedding", "--embeddings 0", "--embeddings"),
    ("relu_embedding", "--points 1", "--points"),
    ("relu_embedding", "--decoders 1000", "--decoders"),
    ("relu_embedding", "--out {world}/letter.txt", "letter.txt"),
    ("relu_invertibility", "--n 0", "--n"),
    ("relu_invertibility", "--m 0", "--m"),
    ("relu_invertibility", "--samples 0", "--samples"),
    ("relu_invertibility", "--out {world}/somebodys", "thesis.tex"),
    ("activation_patterns", "--images 0", "--images"),
    ("activation_patterns", "--weights {world}/missing", "missing"),
    ("activation_patterns", "--dataset nowhere", "nowhere"),
    ("activation_patterns", "--out {world}/somebodys", "thesis.tex"),
    ("bench_input", "--files 0", "--files"),
    ("bench_input", "--rounds 0", "--rounds"),
    ("bench_input", "--peer-python {world}/missing", "missing"),
    ("bench_throughput", "--peers foo", "foo"),
    ("bench_throughput", "--tasks foo", "foo"),
    ("bench_throughput", "--rounds 0", "--rounds"),
    ("bench_throughput", "--resolution 0", "--resolution"),
    ("bench_throughput", "--out {world}/letter.txt", "letter.txt"),
    ("paper_tables", "--out {world}/letter.txt", "letter.txt"),
    ("paper_tables", "--out gs://bucket/tables", "gs://"),
]


def cases(commands: typing.Iterable[str]) -> list[Case]:
    """All of some commands, each once."""
    found = [case for command in commands for case in generated(command)]
    chosen = [case for case in (*found, *table()) if case.command in set(commands)]
    return list(dict.fromkeys(chosen))


ALL = (*COMMANDS, *SCRIPTS)
